/* The way through a frame, once per instruction set: NAME(x) and TARGET are defined, and so are the looks at a group
 * (counting_plain.h or counting_avx512.h).
 *
 * Two looks at every band of rows: the first only tells the groups in which a pixel is above the background, one in
 * six at 2,400 electrons per frame; the second compares the pixels of those with their neighbours. But for x-rays,
 * which are rare, neither branches on what single pixels hold.
 */

/* Rows are put together and scaled up to `end`, the one below the band included. */
TARGET static void NAME(make_ready)(struct frame_rows *frame, const struct counting *plan, int end)
{
    for (; frame->ready < smallest(end, plan->rows); frame->ready++) {
        if (plan->side_by_side)
            put_row_together(frame, plan, frame->ready);
        if (plan->row_dark)
            NAME(scale_row)(frame, plan, frame->ready);
    }
}

/* Lists the groups of rows `first` to `end` - 1 that may hold an electron, as group * BAND_ROWS + row - first. */
TARGET static uint32_t NAME(find_raw)(const struct frame_rows *frame, const struct counting *plan, int first, int end,
                                      uint16_t background)
{
    const int columns = plan->columns;
    uint32_t *candidates = frame->candidates, n = 0;

    for (int row = first; row < end; row++) {
        const pixel *raw = frame->rows[row].raw;
        for (int group = 0; group * GROUP < columns; group++) {
            candidates[n] = (uint32_t)(group * BAND_ROWS + row - first);
            n += NAME(any_above)(frame, raw, group, columns, background) != 0;
        }
    }
    return n;
}

/* The same with a dark or gain reference. */
TARGET static uint32_t NAME(find_corrected)(const struct frame_rows *frame, const struct counting *plan, int first,
                                            int end)
{
    const int columns = plan->columns;
    uint32_t *candidates = frame->candidates, n = 0;

    for (int row = first; row < end; row++) {
        const pixel *raw = frame->rows[row].raw;
        const uint16_t *least = plan->least + (size_t)row * columns;
        for (int group = 0; group * GROUP < columns; group++) {
            candidates[n] = (uint32_t)(group * BAND_ROWS + row - first);
            n += NAME(any_reaches)(frame, raw, least, group, columns) != 0;
        }
    }
    return n;
}

/* The same with row-dark. A group that lies in both half-rows is listed if either would. */
TARGET static uint32_t NAME(find_in_half_rows)(const struct frame_rows *frame, const struct counting *plan, int first,
                                               int end)
{
    const int columns = plan->columns, middle = columns / 2;
    uint32_t *candidates = frame->candidates, n = 0;

    for (int row = first; row < end; row++) {
        const struct frame_row *here = frame->rows + row;
        const uint16_t left = here->noise[0], right = here->noise[1], both = left < right ? left : right;
        for (int group = 0; group * GROUP < columns; group++) {
            int from = group * GROUP;
            uint16_t noise = from + GROUP <= middle ? left : from >= middle ? right : both;
            candidates[n] = (uint32_t)(group * BAND_ROWS + row - first);
            n += NAME(any_above)(frame, here->raw, group, columns, noise) != 0;
        }
    }
    return n;
}

/* Compares the pixels of the first `n` candidates with their neighbours; leaves in `candidates` and `found` the first
 * pixel and the maxima of each group that has any, and returns their number.
 */
TARGET INLINE uint32_t NAME(compare)(const struct frame_rows *frame, const struct counting *plan, int first, int end,
                                     uint32_t n, int corrections)
{
    const uint16_t background = noise_of(plan), last = last_of(plan);
    const uint32_t columns = (uint32_t)plan->columns;
    uint32_t *candidates = frame->candidates, *found = frame->found, kept = 0;
    /* The next band is on its way from memory while this one is compared. */
    const char *next = (const char *)frame->rows[end].raw;
    const char *next_end = next + (plan->side_by_side ? 0 : (size_t)BAND_ROWS * plan->columns * sizeof(pixel));

    for (uint32_t i = 0; i < n; i++) {
        int row = first + (int)(candidates[i] % BAND_ROWS), group = (int)(candidates[i] / BAND_ROWS);
        for (int line = 0; line < 2 && next < next_end; line++, next += 64)
            __builtin_prefetch(next);
        uint32_t maxima = corrections & ~HAS_KEEP
                              ? NAME(corrected_maxima)(frame, plan, row, group, corrections)
                              : NAME(raw_maxima)(frame, plan, row, group, background, last, corrections);
        found[kept] = maxima;
        candidates[kept] = (uint32_t)row * columns + (uint32_t)(group * GROUP);
        kept += maxima != 0;
    }
    return kept;
}

/* compare() with each combination of corrections as a constant. */
TARGET static uint32_t NAME(compare_as)(const struct frame_rows *frame, const struct counting *plan, int first, int end,
                                        uint32_t n, int corrections)
{
#define WITH(corrections)                                                                                              \
    case corrections:                                                                                                  \
        return NAME(compare)(frame, plan, first, end, n, corrections)
    switch (corrections) {
        WITH(0);
        WITH(HAS_GAIN);
        WITH(HAS_DARK);
        WITH(HAS_DARK | HAS_GAIN);
        WITH(HAS_ROW_DARK);
        WITH(HAS_ROW_DARK | HAS_GAIN);
        WITH(HAS_KEEP);
        WITH(HAS_KEEP | HAS_GAIN);
        WITH(HAS_KEEP | HAS_DARK);
        WITH(HAS_KEEP | HAS_DARK | HAS_GAIN);
        WITH(HAS_KEEP | HAS_ROW_DARK);
        WITH(HAS_KEEP | HAS_ROW_DARK | HAS_GAIN);
    }
#undef WITH
    return 0; /* dark and row-dark together are refused */
}

/* Appends the electrons of rows `first` to `end` - 1, which are ready, as are their neighbours. */
TARGET static uint32_t *NAME(count_band)(const struct frame_rows *frame, const struct counting *plan, int first,
                                         int end, uint32_t *indices)
{
    const int corrections = corrections_of(plan);
    uint32_t kept;

    if (corrections & HAS_ROW_DARK)
        kept = NAME(find_in_half_rows)(frame, plan, first, end);
    else if (corrections & ~HAS_KEEP)
        kept = NAME(find_corrected)(frame, plan, first, end);
    else
        kept = NAME(find_raw)(frame, plan, first, end, noise_of(plan));
    kept = NAME(compare_as)(frame, plan, first, end, kept, corrections);
    for (uint32_t i = 0; i < kept; i++)
        for (uint32_t maxima = frame->found[i]; maxima; maxima &= maxima - 1)
            *indices++ = frame->candidates[i] + (uint32_t)__builtin_ctz(maxima);
    return indices;
}

/* Writes the electrons of one frame, ascending, and their centroids unless that is NULL; returns their number. */
TARGET static uint32_t NAME(count_frame)(struct frame_rows *frame, const struct counting *plan, const uint64_t *sectors,
                                         uint32_t *indices, int8_t (*centroids)[2])
{
    uint32_t *end_of_indices = indices;

    begin_frame(frame, plan, sectors);
    int exactly = must_count_exactly(frame, plan);
    for (int first = 0; first < plan->rows; first += BAND_ROWS) {
        int end = smallest(first + BAND_ROWS, plan->rows);
        uint32_t *band = end_of_indices;
        NAME(make_ready)(frame, plan, end + 1);
        end_of_indices = exactly ? count_exactly(frame, plan, first, end, band)
                                 : NAME(count_band)(frame, plan, first, end, band);
        if (centroids)
            for (uint32_t *index = band; index < end_of_indices; index++)
                find_centroid(frame, plan, (int)(*index / (uint32_t)plan->columns),
                              (int)(*index % (uint32_t)plan->columns), centroids[index - indices]);
    }
    return (uint32_t)(end_of_indices - indices);
}

/* Adds up what the live views need of one frame: the sums of the electrons' rows and columns, the electrons on each
 * annulus (bit k of a pixel's label: it lies on annulus k), and the electrons on each pixel over all frames.
 */
TARGET static void NAME(add_sums)(const struct frame_sums *sums, const struct counting *plan, const uint32_t *indices,
                                  uint32_t n, uint64_t moments[2], uint64_t *on_annuli)
{
    const double row_per_pixel = 1.0 / plan->columns;
    uint64_t rows = 0, all = 0;

    for (uint32_t i = 0; i < n; i++) {
        rows += (uint32_t)(int32_t)((indices[i] + 0.5) * row_per_pixel); /* the half keeps rounding off whole rows */
        all += indices[i];
    }
    moments[0] = rows;
    moments[1] = all - rows * (uint64_t)plan->columns;
    for (uint32_t i = 0; i < n; i++)
        sums->pattern[indices[i]]++;
    for (int annulus = 0; annulus < sums->annuli; annulus++)
        on_annuli[annulus] = 0;
    if (!sums->annuli)
        return;
    /* Eight counters of a byte each, emptied before they overflow. */
    for (uint32_t first = 0; first < n; first += 255) {
        uint64_t eight = 0;
        for (uint32_t i = first; i < n && i < first + 255; i++)
            eight += sums->spread[sums->labels[indices[i]]];
        for (int annulus = 0; annulus < sums->annuli; annulus++)
            on_annuli[annulus] += eight >> 8 * annulus & 255;
    }
}

#undef GROUP
#undef NAME
#undef TARGET
