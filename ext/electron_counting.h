/* Electron counting: the loops over pixels. No allocation, no policy; safe to call without the GIL. */
#ifndef MPISTREAM_ELECTRON_COUNTING_H
#define MPISTREAM_ELECTRON_COUNTING_H

#include "frame_pixels.h"

/* Which of the clones this CPU runs. */
static const char *simd_level_name(void)
{
#if HAS_CLONES
    if (__builtin_cpu_supports("x86-64-v4"))
        return "avx512";
    if (__builtin_cpu_supports("avx2"))
        return "avx2";
#endif
    return "portable";
}

/* Sets to 0 what is no electron. */
FOR_EACH_CPU
static void apply_thresholds(float *values, int length, float background, float xray)
{
    for (int i = 0; i < length; i++)
        values[i] = (values[i] > background) & (values[i] < xray) ? values[i] : 0.0f;
}

#define LARGER(a, b) ((a) > (b) ? (a) : (b))

/* marks[c] = 1 where here[c] is strictly greater than its eight neighbours. The rows have a pixel on either side;
 * `column_maxima` is such a row of scratch, whose pixels outside the frame are below every value.
 */
FOR_EACH_CPU
static void mark_maxima(uint8_t *restrict marks, float *restrict column_maxima, const float *restrict above,
                        const float *restrict here, const float *restrict below, int columns)
{
    for (int c = 0; c < columns; c++)
        column_maxima[c] = LARGER(LARGER(above[c], below[c]), here[c]);
    for (int c = 0; c < columns; c++) {
        float beside = LARGER(column_maxima[c - 1], column_maxima[c + 1]);
        float neighbours = LARGER(beside, LARGER(above[c], below[c]));
        marks[c] = here[c] > neighbours;
    }
}

/* Appends the marked pixels; `marks` is followed by zeros up to a multiple of eight. */
static uint32_t *append_marked(uint32_t *indices, const uint8_t *marks, int columns, uint32_t first)
{
    for (int c = 0; c < columns; c += 8) {
        uint64_t eight;
        memcpy(&eight, marks + c, sizeof eight);
        for (; eight; eight &= eight - 1)
            *indices++ = first + c + (__builtin_ctzll(eight) >> 3);
    }
    return indices;
}

/* Rows of scratch begin at cache lines (an unaligned load costs twice), with a line outside the frame on either side. */
enum { LINE_FLOATS = 16, SCRATCH_ROWS = 4 };

static size_t scratch_row_floats(int columns)
{
    return ((size_t)columns + LINE_FLOATS - 1) / LINE_FLOATS * LINE_FLOATS + LINE_FLOATS;
}

/* Length in floats of the scratch that count_frame needs: the rows, and a row of marks. */
static size_t counting_scratch_floats(int columns)
{
    return SCRATCH_ROWS * scratch_row_floats(columns) + 2 * LINE_FLOATS + ((size_t)columns + 11) / 4;
}

/* Writes the electrons of one frame, ascending; returns their number.
 *
 * No two maxima touch, so each square of 2 x 2 pixels holds one at most: `indices` has room for
 * ceil(rows / 2) * ceil(columns / 2), whatever the thresholds.
 */
static uint32_t count_frame(const struct frame_pixels *frame, const uint64_t *sectors, float background, float xray,
                            float *scratch, uint32_t *indices)
{
    const int columns = frame->columns;
    const size_t width = scratch_row_floats(columns);
    uintptr_t line = (uintptr_t)LINE_FLOATS * sizeof(float);
    float *rows = (float *)(((uintptr_t)scratch + line - 1) / line * line);
    float *above = rows + LINE_FLOATS, *here = above + width, *below = here + width, *column_maxima = below + width;
    uint8_t *marks = (uint8_t *)(rows + SCRATCH_ROWS * width + LINE_FLOATS);
    uint32_t *end = indices;

    /* What lies outside the frame is below every value, so that it never hinders a maximum. */
    for (size_t i = 0; i < SCRATCH_ROWS * width + LINE_FLOATS; i++)
        rows[i] = -__builtin_inff();
    memset(marks, 0, (size_t)columns + 8);

    correct_row(here, frame, sectors, 0);
    apply_thresholds(here, columns, background, xray);
    for (int row = 0; row < frame->rows; row++) {
        if (row + 1 < frame->rows) {
            correct_row(below, frame, sectors, row + 1);
            apply_thresholds(below, columns, background, xray);
        } else {
            for (int c = 0; c < columns; c++)
                below[c] = -__builtin_inff();
        }
        mark_maxima(marks, column_maxima, above, here, below, columns);
        end = append_marked(end, marks, columns, (uint32_t)row * (uint32_t)columns);

        float *oldest = above;
        above = here;
        here = below;
        below = oldest;
    }
    return (uint32_t)(end - indices);
}

/* What the pixel values of a frame are, as integers: results do not depend on the order of frames.
 * A value outside the bins counts as the nearest end. */
enum { FIRST_BIN = -65536, LAST_BIN = 131071, STEPS_PER_UNIT = 32 };

struct frame_moments {
    float minimum;
    float maximum;
    int64_t sum;          /* of round(value * STEPS_PER_UNIT) */
    uint64_t square_sum;  /* of its square; below 2^63 for 2^18.4 pixels */
};

/* To the nearest integer, ties away from zero. */
static inline int64_t nearest(double value)
{
    return (int64_t)(value + (value < 0 ? -0.5 : 0.5));
}

/* Adds one frame's values to `histogram` (bin i holds the values nearest to FIRST_BIN + i). */
static void sample_frame(const struct frame_pixels *frame, const uint64_t *sectors, float *row_values,
                         uint64_t *histogram, struct frame_moments *moments)
{
    struct frame_moments m = {__builtin_inff(), -__builtin_inff(), 0, 0};

    for (int row = 0; row < frame->rows; row++) {
        correct_row(row_values, frame, sectors, row);
        for (int c = 0; c < frame->columns; c++) {
            float value = row_values[c];
            value = value < (float)FIRST_BIN ? (float)FIRST_BIN : value > (float)LAST_BIN ? (float)LAST_BIN : value;
            int64_t steps = nearest((double)value * STEPS_PER_UNIT);
            histogram[nearest(value) - FIRST_BIN]++;
            m.minimum = value < m.minimum ? value : m.minimum;
            m.maximum = value > m.maximum ? value : m.maximum;
            m.sum += steps;
            m.square_sum += (uint64_t)(steps * steps);
        }
    }
    *moments = m;
}

#endif
