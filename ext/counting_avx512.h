/* The looks at a group of pixels with 512-bit vectors of 32 pixels: the 30 of the group and one on either side, so that
 * the neighbours on the left and on the right are lanes of the same vector. The same functions as in counting_plain.h.
 *
 * Masked loads touch no memory beyond the row.
 */

#undef GROUP
#define GROUP LEAST_GROUP

/* Is any pixel of the group above `background`? */
TARGET INLINE int NAME(any_above)(const struct frame_rows *frame, const pixel *row, int group, int columns,
                                  uint16_t background)
{
    __mmask32 own = frame->own[group];
    __m512i pixels = _mm512_maskz_loadu_epi16(own, row + group * GROUP - 1);

    return _mm512_mask_cmpgt_epu16_mask(own, pixels, _mm512_set1_epi16((short)background)) != 0;
}

/* Does any pixel of the group reach its own `least`? */
TARGET INLINE int NAME(any_reaches)(const struct frame_rows *frame, const pixel *row, const uint16_t *least, int group,
                                    int columns)
{
    __mmask32 own = frame->own[group];
    __m512i pixels = _mm512_maskz_loadu_epi16(own, row + group * GROUP - 1);

    return _mm512_mask_cmpge_epu16_mask(own, pixels, _mm512_maskz_loadu_epi16(own, least + group * GROUP - 1)) != 0;
}

/* Lanes that take part in a row. */
TARGET INLINE __mmask32 NAME(taking_part)(const struct frame_row *row, int first, __mmask32 lanes, int corrections)
{
    if (!(corrections & HAS_KEEP))
        return lanes;
    __m256i keep = _mm256_maskz_loadu_epi8(lanes, row->keep + first);
    return _mm256_test_epi8_mask(keep, keep);
}

TARGET INLINE __m512i NAME(load_pixels)(const struct frame_row *row, int first, __mmask32 lanes, int corrections)
{
    return _mm512_maskz_loadu_epi16(NAME(taking_part)(row, first, lanes, corrections), row->raw + first);
}

/* Lane i of the result is lane i - 1, or i + 1, of the argument. */
TARGET INLINE __m512i NAME(from_left)(__m512i v)
{
    const __m512i lane = _mm512_set_epi16(30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16, 15, 14, 13, 12,
                                          11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0);
    return _mm512_permutexvar_epi16(lane, v);
}

TARGET INLINE __m512i NAME(from_right)(__m512i v)
{
    const __m512i lane = _mm512_set_epi16(31, 31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16, 15, 14,
                                          13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1);
    return _mm512_permutexvar_epi16(lane, v);
}

/* The maxima of a group of raw pixels, bit i for pixel i of it: above `background`, not above `last`. */
TARGET INLINE uint32_t NAME(raw_maxima)(const struct frame_rows *frame, const struct counting *plan, int row, int group,
                                        uint16_t background, uint16_t last, int corrections)
{
    const struct frame_row *here_row = frame->rows + row;
    const int first = group * GROUP - 1;
    __mmask32 lanes = frame->lanes[group];
    __m512i above = NAME(load_pixels)(here_row - 1, first, lanes, corrections);
    __m512i here = NAME(load_pixels)(here_row, first, lanes, corrections);
    __m512i below = NAME(load_pixels)(here_row + 1, first, lanes, corrections);
    __m512i beyond = _mm512_max_epu16(above, below);
    __m512i column_maxima = _mm512_max_epu16(beyond, here);
    __m512i most = _mm512_set1_epi16((short)last);

    if (__builtin_expect(_mm512_cmpgt_epu16_mask(column_maxima, most) != 0, 0)) {
        above = _mm512_maskz_mov_epi16(_mm512_cmple_epu16_mask(above, most), above);
        here = _mm512_maskz_mov_epi16(_mm512_cmple_epu16_mask(here, most), here);
        below = _mm512_maskz_mov_epi16(_mm512_cmple_epu16_mask(below, most), below);
        beyond = _mm512_max_epu16(above, below);
        column_maxima = _mm512_max_epu16(beyond, here);
    }
    __m512i beside = _mm512_max_epu16(NAME(from_left)(column_maxima), NAME(from_right)(column_maxima));
    __m512i limit = _mm512_max_epu16(_mm512_max_epu16(beside, beyond), _mm512_set1_epi16((short)background));
    return _mm512_mask_cmpgt_epu16_mask(frame->own[group], here, limit) >> 1;
}

/* Corrected values of 16 pixels from column `first` on; 0 for what takes no part. */
TARGET INLINE __m512 NAME(load_values)(const struct frame_row *row, const struct counting *plan, int first,
                                       __mmask16 lanes, int corrections)
{
    __m512 values = _mm512_maskz_cvtepi32_ps(lanes,
                                             _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, row->raw + first)));

    if (corrections & HAS_DARK)
        values = _mm512_maskz_sub_ps(lanes, values, _mm512_maskz_loadu_ps(lanes, row->dark + first));
    if (corrections & HAS_ROW_DARK) {
        int left = largest(smallest(plan->columns / 2 - first, 16), 0);
        values = _mm512_mul_ps(values, _mm512_mask_blend_ps((__mmask16)_bzhi_u32(~0u, (uint32_t)left),
                                                            _mm512_set1_ps(row->factor[1]),
                                                            _mm512_set1_ps(row->factor[0])));
    }
    if (corrections & HAS_GAIN)
        values = _mm512_mul_ps(values, _mm512_maskz_loadu_ps(lanes, row->inverse_gain + first));
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(values, _mm512_set1_ps(plan->xray), _CMP_LT_OQ), values);
}

/* Lane i of the result is lane i + `by` of `high`:`low`. */
#define SHIFT_LANES(high, low, by)                                                                                     \
    _mm512_castsi512_ps(_mm512_alignr_epi32(_mm512_castps_si512(high), _mm512_castps_si512(low), by))

/* The maxima of a group of corrected pixels, bit i for pixel i of it. The background is not negative. */
TARGET INLINE uint32_t NAME(corrected_maxima)(const struct frame_rows *frame, const struct counting *plan, int row,
                                              int group, int corrections)
{
    const struct frame_row *here_row = frame->rows + row;
    const int first = group * GROUP - 1;
    __mmask32 lanes[3];
    __m512 here[2], beyond[2], column_maxima[2];

    for (int i = 0; i < 3; i++)
        lanes[i] = NAME(taking_part)(here_row - 1 + i, first, frame->lanes[group], corrections);
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
        int from = first + 16 * half, by = 16 * half;
        __m512 above = NAME(load_values)(here_row - 1, plan, from, (__mmask16)(lanes[0] >> by), corrections);
        __m512 below = NAME(load_values)(here_row + 1, plan, from, (__mmask16)(lanes[2] >> by), corrections);
        here[half] = NAME(load_values)(here_row, plan, from, (__mmask16)(lanes[1] >> by), corrections);
        beyond[half] = _mm512_max_ps(above, below);
        column_maxima[half] = _mm512_max_ps(beyond[half], here[half]);
    }
    __m512 left[2] = {SHIFT_LANES(column_maxima[0], column_maxima[0], 15),
                      SHIFT_LANES(column_maxima[1], column_maxima[0], 15)};
    __m512 right[2] = {SHIFT_LANES(column_maxima[1], column_maxima[0], 1),
                       SHIFT_LANES(column_maxima[1], column_maxima[1], 1)};
    __m512 background = _mm512_set1_ps(plan->background);
    uint32_t maxima = 0;
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
        __m512 limit = _mm512_max_ps(_mm512_max_ps(left[half], right[half]), _mm512_max_ps(beyond[half], background));
        maxima |= (uint32_t)_mm512_cmp_ps_mask(here[half], limit, _CMP_GT_OQ) << 16 * half;
    }
    return (maxima & frame->own[group]) >> 1;
}

/* How many of the values are below `limit` (at most 65536). */
TARGET static uint32_t NAME(count_below)(const pixel *values, int length, uint32_t limit)
{
    uint32_t total = 0;
    __m512i last = _mm512_set1_epi16((short)(limit - 1));

    if (limit == 0)
        return 0;
    for (int first = 0; first < length; first += 32) {
        __mmask32 lanes = _bzhi_u32(~0u, (uint32_t)smallest(length - first, 32));
        __m512i pixels = _mm512_maskz_loadu_epi16(lanes, values + first);
        total += (uint32_t)_mm_popcnt_u32(_mm512_mask_cmple_epu16_mask(lanes, pixels, last));
    }
    return total;
}
