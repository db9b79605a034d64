/* The looks at a group of pixels, in plain C that compilers turn into vector code. Included once per instruction set,
 * with NAME(x) and TARGET defined. The same functions as in counting_avx512.h.
 *
 * A group is the pixels of one row from `column` on, GROUP of them or as many as the row has left.
 */

#undef GROUP
#define GROUP 32

/* Is any pixel of the group above `background`? */
TARGET INLINE int NAME(any_above)(const struct frame_rows *frame, const pixel *row, int group, int columns,
                                  uint16_t background)
{
    int first = group * GROUP, length = columns - first;
    uint16_t any = 0;

    row += first;
    if (length >= GROUP) {
        for (int i = 0; i < GROUP; i++)
            any |= row[i] > background;
    } else {
        for (int i = 0; i < length; i++)
            any |= row[i] > background;
    }
    return any;
}

/* Does any pixel of the group reach its own `least`? */
TARGET INLINE int NAME(any_reaches)(const struct frame_rows *frame, const pixel *row, const uint16_t *least, int group,
                                    int columns)
{
    int first = group * GROUP, length = columns - first;
    uint16_t any = 0;

    row += first;
    least += first;
    if (length >= GROUP) {
        for (int i = 0; i < GROUP; i++)
            any |= row[i] >= least[i];
    } else {
        for (int i = 0; i < length; i++)
            any |= row[i] >= least[i];
    }
    return any;
}

/* Bit i for each of 32 bytes that are 0 or 1. */
INLINE uint32_t NAME(bits)(const uint8_t *marks)
{
    uint32_t bits = 0;

    for (int i = 0; i < GROUP; i += 8) {
        uint64_t eight;
        memcpy(&eight, marks + i, sizeof eight);
        bits |= (uint32_t)((eight * 0x0102040810204080u) >> 56) << i;
    }
    return bits;
}

#define LARGER(a, b) ((a) > (b) ? (a) : (b))

/* bits of the places whose value is above `background` and all eight around it, in rows with a place on either side */
#define MAXIMA(type, above, here, below, background)                                                                   \
    do {                                                                                                               \
        type column_maxima[GROUP + 2];                                                                                 \
        uint8_t marks[GROUP];                                                                                          \
        for (int i = 0; i < GROUP + 2; i++)                                                                            \
            column_maxima[i] = LARGER(LARGER(above[i], below[i]), here[i]);                                            \
        for (int i = 0; i < GROUP; i++)                                                                                \
            marks[i] = (here[i + 1] > column_maxima[i]) & (here[i + 1] > column_maxima[i + 2]) &                       \
                       (here[i + 1] > above[i + 1]) & (here[i + 1] > below[i + 1]) & (here[i + 1] > background);       \
        return NAME(bits)(marks);                                                                                      \
    } while (0)

/* A row of the group with a pixel on either side; 0 for what takes no part, x-rays too. */
TARGET INLINE void NAME(load_pixels)(pixel *out, const struct frame_row *row, int first, int end, int offset,
                                     uint16_t last, int corrections)
{
    if (end - first == GROUP + 2) {
        memcpy(out, row->raw + first, (GROUP + 2) * sizeof *out);
    } else {
        memset(out, 0, (GROUP + 2) * sizeof *out);
        memcpy(out + offset, row->raw + first, (size_t)(end - first) * sizeof *out);
    }
    for (int i = 0; i < GROUP + 2; i++)
        out[i] = out[i] <= last ? out[i] : 0;
    if (corrections & HAS_KEEP)
        for (int i = 0; i < end - first; i++)
            out[offset + i] = row->keep[first + i] ? out[offset + i] : 0;
}

/* Are all pixels of the group and around it good? Most often, since masks are sparse. */
TARGET INLINE int NAME(all_kept)(const struct frame_row *here, int first)
{
    uint8_t keep = 255;

    for (int row = -1; row < 2; row++)
        for (int i = 0; i < GROUP + 2; i++)
            keep &= here[row].keep[first + i];
    return keep != 0;
}

/* The maxima among rows of pixels where they lie; returns 0, and no maxima, where there are x-rays. */
TARGET INLINE int NAME(maxima_in_place)(uint32_t *maxima, const pixel *above, const pixel *here, const pixel *below,
                                        uint16_t background, uint16_t last)
{
    uint8_t marks[GROUP];
    uint16_t xrays = 0;

    for (int i = 0; i < GROUP; i++) {
        uint16_t left = LARGER(LARGER(above[i], below[i]), here[i]);
        uint16_t right = LARGER(LARGER(above[i + 2], below[i + 2]), here[i + 2]);
        uint16_t around = LARGER(LARGER(left, right), LARGER(above[i + 1], below[i + 1]));
        marks[i] = (here[i + 1] > around) & (here[i + 1] > background);
        xrays |= (around > last) | (here[i + 1] > last);
    }
    *maxima = NAME(bits)(marks);
    return !xrays;
}

/* The maxima of a group of raw pixels, bit i for pixel i of it: above `background`, not above `last`. */
TARGET INLINE uint32_t NAME(raw_maxima)(const struct frame_rows *frame, const struct counting *plan, int row, int group,
                                        uint16_t background, uint16_t last, int corrections)
{
    const struct frame_row *here_row = frame->rows + row;
    const int column = group * GROUP, first = largest(column - 1, 0), offset = first - column + 1;
    const int end = smallest(column + GROUP + 1, plan->columns);
    uint16_t above[GROUP + 2], here[GROUP + 2], below[GROUP + 2];

    if (end - first == GROUP + 2 && (!(corrections & HAS_KEEP) || NAME(all_kept)(here_row, first))) {
        uint32_t maxima;
        if (NAME(maxima_in_place)(&maxima, here_row[-1].raw + first, here_row->raw + first, here_row[1].raw + first,
                                  background, last))
            return maxima;
    }
    NAME(load_pixels)(above, here_row - 1, first, end, offset, last, corrections);
    NAME(load_pixels)(here, here_row, first, end, offset, last, corrections);
    NAME(load_pixels)(below, here_row + 1, first, end, offset, last, corrections);
    MAXIMA(uint16_t, above, here, below, background);
}

/* The corrected values of a row of the group with a pixel on either side; 0 for what takes no part. */
TARGET INLINE void NAME(load_values)(float *out, const struct frame_row *row, const struct counting *plan, int first,
                                     int end, int offset, int corrections)
{
    const ptrdiff_t length = end - first, left = plan->columns / 2 - first;
    const pixel *raw = row->raw + first;
    const float *dark = row->dark + first, *inverse_gain = row->inverse_gain + first;
    const uint8_t *keep = row->keep + first;

    if (length < GROUP + 2)
        memset(out, 0, (GROUP + 2) * sizeof *out);
    out += offset;
    for (ptrdiff_t i = 0; i < length; i++)
        out[i] = (float)raw[i];
    if (corrections & HAS_DARK)
        for (ptrdiff_t i = 0; i < length; i++)
            out[i] -= dark[i];
    if (corrections & HAS_ROW_DARK)
        for (ptrdiff_t i = 0; i < length; i++)
            out[i] *= i < left ? row->factor[0] : row->factor[1];
    if (corrections & HAS_GAIN)
        for (ptrdiff_t i = 0; i < length; i++)
            out[i] *= inverse_gain[i];
    for (ptrdiff_t i = 0; i < length; i++)
        out[i] = out[i] < plan->xray ? out[i] : 0;
    if (corrections & HAS_KEEP)
        for (ptrdiff_t i = 0; i < length; i++)
            out[i] = keep[i] ? out[i] : 0;
}

/* The maxima among three rows, their values calculated anew wherever they are needed: faster than to store them for
 * so short a while. Returns 0, and no maxima, where there are x-rays.
 */
TARGET INLINE int NAME(corrected_in_place)(uint32_t *maxima, const struct frame_row *rows, const struct counting *plan,
                                           int half, int corrections)
{
    const float f0 = rows[0].factor[half], f1 = rows[1].factor[half], f2 = rows[2].factor[half];
    uint8_t marks[GROUP];
    uint32_t xrays = 0;

    for (ptrdiff_t i = 0; i < GROUP; i++) {
        float around = -__builtin_inff(), here = corrected(rows + 1, i + 1, f1, corrections);
        for (ptrdiff_t j = i; j < i + 3; j++) {
            float above = corrected(rows, j, f0, corrections), below = corrected(rows + 2, j, f2, corrections);
            around = LARGER(around, LARGER(above, below));
        }
        around = LARGER(around, corrected(rows + 1, i, f1, corrections));
        around = LARGER(around, corrected(rows + 1, i + 2, f1, corrections));
        marks[i] = (here > around) & (here > plan->background);
        xrays |= (around >= plan->xray) | (here >= plan->xray);
    }
    *maxima = NAME(bits)(marks);
    return !xrays;
}

/* The maxima of a group of corrected pixels, bit i for pixel i of it. The background is not negative. */
TARGET INLINE uint32_t NAME(corrected_maxima)(const struct frame_rows *frame, const struct counting *plan, int row,
                                              int group, int corrections)
{
    const struct frame_row *here_row = frame->rows + row;
    const int column = group * GROUP, first = largest(column - 1, 0), offset = first - column + 1;
    const int end = smallest(column + GROUP + 1, plan->columns), middle = plan->columns / 2;
    float above[GROUP + 2], here[GROUP + 2], below[GROUP + 2];

    if (end - first == GROUP + 2 && (end <= middle || first >= middle) &&
        (!(corrections & HAS_KEEP) || NAME(all_kept)(here_row, first))) {
        struct frame_row rows[3] = {here_row[-1], here_row[0], here_row[1]};
        uint32_t maxima;
        for (int i = 0; i < 3; i++) {
            rows[i].raw += first;
            rows[i].dark += first;
            rows[i].inverse_gain += first;
        }
        if (NAME(corrected_in_place)(&maxima, rows, plan, first >= middle, corrections))
            return maxima;
    }
    NAME(load_values)(above, here_row - 1, plan, first, end, offset, corrections);
    NAME(load_values)(here, here_row, plan, first, end, offset, corrections);
    NAME(load_values)(below, here_row + 1, plan, first, end, offset, corrections);
    MAXIMA(float, above, here, below, plan->background);
}
#undef MAXIMA
#undef LARGER

/* How many of the values are below `limit` (at most 65536). */
TARGET static uint32_t NAME(count_below)(const pixel *values, int length, uint32_t limit)
{
    uint32_t total = 0;
    uint16_t last = (uint16_t)(limit - 1);

    if (limit == 0)
        return 0;
    for (int n; length > 0; length -= n, values += n) {
        uint16_t below = 0;
        n = smallest(length, 32768);
        for (int i = 0; i < n; i++)
            below += values[i] <= last;
        total += below;
    }
    return total;
}
