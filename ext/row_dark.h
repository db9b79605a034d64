/* Row-dark: every half-row is scaled so that its mean or median becomes the given level. Included once per instruction
 * set, with NAME(x) and TARGET defined, behind count_below.
 */

/* The pixels of a half-row that are there: where they lie, or copied to `frame->half_row`. */
TARGET static const pixel *NAME(half_row_pixels)(struct frame_rows *frame, const struct counting *plan, int row,
                                                 int half, int *length)
{
    const struct frame_row *here = frame->rows + row;
    const int first = half ? plan->columns / 2 : 0, end = half ? plan->columns : plan->columns / 2;
    const int run_length = plan->side_by_side ? plan->columns / plan->sectors : plan->columns;
    const int masked = frame->masked[row][half];
    int n = 0;

    if (here->raw == frame->rows[-1].raw) { /* the row's sector is missing */
        *length = 0;
        return here->raw;
    }
    if (!masked && !(plan->side_by_side && frame->incomplete)) {
        *length = end - first;
        return here->raw + first;
    }
    for (int column = first, run_end; column < end; column = run_end) {
        run_end = smallest(end, (column / run_length + 1) * run_length);
        if (plan->side_by_side && frame->sectors[column / run_length] == 0)
            continue;
        for (int c = column; c < run_end; c++) {
            frame->half_row[n] = here->raw[c];
            n += !masked || here->keep[c];
        }
    }
    *length = n;
    return frame->half_row;
}

/* The value of the given rank (0 is the lowest), searched from `guess`: rows beside each other hardly differ. */
TARGET static uint16_t NAME(ranked)(const pixel *values, int length, uint32_t rank, uint16_t guess)
{
    uint32_t low = guess, high = guess, step = 1;

    /* Invariant sought: count_below(low) <= rank < count_below(high). */
    while (low > 0 && NAME(count_below)(values, length, low) > rank) {
        high = low;
        low = low > step ? low - step : 0;
        step *= 2;
    }
    if (high == low) {
        for (high = low + 1; high < 65536 && NAME(count_below)(values, length, high) <= rank; step *= 2) {
            low = high;
            high = high + step < 65536 ? high + step : 65536;
        }
    }
    while (high - low > 1) {
        uint32_t middle = (low + high) / 2;
        if (NAME(count_below)(values, length, middle) > rank)
            high = middle;
        else
            low = middle;
    }
    return (uint16_t)low;
}

TARGET static uint64_t NAME(sum_of)(const pixel *values, int length)
{
    uint64_t total = 0;

    for (int first = 0; first < length; first += 65536) { /* so many values fit into 32 bits */
        uint32_t sum = 0;
        for (int i = first; i < smallest(length, first + 65536); i++)
            sum += values[i];
        total += sum;
    }
    return total;
}

/* Mean or median of a half-row; 0 without pixels. */
TARGET static float NAME(half_row_statistic)(struct frame_rows *frame, const struct counting *plan, const pixel *values,
                                             int length)
{
    if (length == 0)
        return 0;
    if (plan->row_dark == ROW_DARK_MEAN)
        return (float)((double)NAME(sum_of)(values, length) / length);
    uint16_t lower = NAME(ranked)(values, length, (uint32_t)(length - 1) / 2, frame->guess);
    uint16_t upper = NAME(ranked)(values, length, (uint32_t)length / 2, lower);
    frame->guess = lower;
    return ((float)lower + (float)upper) * 0.5f;
}

/* The factors of a row, and up to which raw value nothing is above the background. */
TARGET static void NAME(scale_row)(struct frame_rows *frame, const struct counting *plan, int row)
{
    for (int half = 0; half < 2; half++) {
        int length;
        const pixel *values = NAME(half_row_pixels)(frame, plan, row, half, &length);
        float statistic = NAME(half_row_statistic)(frame, plan, values, length);
        float factor = statistic > 0 ? plan->row_dark_level / statistic : 0;
        double slope = (double)factor * (plan->half_row_gain ? plan->half_row_gain[2 * row + half] : 1);
        /* Rounding moves a value by less than a part in 10^6: no candidate is missed. */
        double noise = slope > 0 ? plan->background / slope * (1 - 1e-6) - 1 : 65535;

        frame->rows[row].factor[half] = factor;
        frame->rows[row].noise[half] = (uint16_t)(noise < 0 ? 0 : noise > 65535 ? 65535 : noise);
    }
}
