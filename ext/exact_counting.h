/* Counting by the definition, pixel after pixel. Needed where the short cuts of the other paths do not hold: with a
 * negative background a pixel set to 0 can be the maximum of negative neighbours, and where a row is spread over
 * sectors only part of it may be missing.
 */
#ifndef MPISTREAM_EXACT_COUNTING_H
#define MPISTREAM_EXACT_COUNTING_H

#include "counting_frame.h"

static int must_count_exactly(const struct frame_rows *frame, const struct counting *plan)
{
    return plan->background < 0 || (plan->side_by_side && plan->dark && frame->incomplete);
}

/* Values of a row that is ready; below every value where a pixel is masked or outside the frame. */
static void exact_row(float *values, const struct frame_rows *frame, const struct counting *plan, int row)
{
    int inside = row >= 0 && row < plan->rows;

    values[-1] = values[plan->columns] = -__builtin_inff();
    for (int column = 0; column < plan->columns; column++) {
        int masked = !inside || (plan->keep && !plan->keep[(size_t)row * plan->columns + column]);
        values[column] = masked ? -__builtin_inff() : kept_value(frame, plan, row, column);
    }
}

static inline float larger(float a, float b) { return a > b ? a : b; }

/* Appends the electrons of rows `first` to `end` - 1, which are ready, as are their neighbours. */
static uint32_t *count_exactly(const struct frame_rows *frame, const struct counting *plan, int first, int end,
                               uint32_t *indices)
{
    const int columns = plan->columns;
    float *above = frame->values + 1, *here = above + columns + 2, *below = here + columns + 2;

    exact_row(above, frame, plan, first - 1);
    exact_row(here, frame, plan, first);
    for (int row = first; row < end; row++) {
        exact_row(below, frame, plan, row + 1);
        for (int c = 0; c < columns; c++) {
            float beyond = larger(larger(above[c - 1], larger(above[c], above[c + 1])),
                                  larger(below[c - 1], larger(below[c], below[c + 1])));
            float neighbours = larger(beyond, larger(here[c - 1], here[c + 1]));
            if (!(here[c] > neighbours))
                continue;
            /* Without neighbours it must be above the background itself. */
            if (neighbours == -__builtin_inff() && !is_kept(frame, plan, row, c))
                continue;
            *indices++ = (uint32_t)row * (uint32_t)columns + (uint32_t)c;
        }
        float *oldest = above;
        above = here;
        here = below;
        below = oldest;
    }
    return indices;
}

#endif
