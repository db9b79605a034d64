/* Where within its pixel an electron hit: the centroid of its charge along either axis. */
#ifndef MPISTREAM_CENTROID_H
#define MPISTREAM_CENTROID_H

#include "counting_frame.h"

/* Offsets are stored in this many steps per pixel. */
enum { CENTROID_STEPS = 128 };

/* To the nearest integer, ties to even; for |value| < 2^51. */
static inline double nearest_even(double value)
{
    const double shift = 6755399441055744.0; /* 1.5 * 2^52: the sum has no bits left for a fraction */
    return (value + shift) - shift;
}

static inline int8_t centroid_offset(double before, double centre, double after)
{
    double charge = before + centre + after;

    if (!(charge > 0 && charge < __builtin_inf())) /* infinite where a product with the inverse gain overflows */
        return 0;
    return (int8_t)nearest_even((after - before) / charge * CENTROID_STEPS);
}

/* (row, column) offset of the electron at (row, column) in steps of 1 / CENTROID_STEPS pixel: each from the three
 * pixels in line, over the lowest of the 3 x 3. Pixels that are not there, and x-rays, carry no charge.
 */
static void find_centroid(const struct frame_rows *frame, const struct counting *plan, int row, int column,
                          int8_t offset[2])
{
    const int corrections = corrections_of(plan), middle = plan->columns / 2;
    const int whole = !frame->incomplete && !plan->keep && row > 0 && row < plan->rows - 1 && column > 0 &&
                      column < plan->columns - 1;
    const float none = __builtin_inff(), xray = plan->xray;
    float value[3][3], lowest = none;
    double charge[3][3];

    for (int i = 0; i < 3; i++) {
        const struct frame_row *here = frame->rows + row + i - 1;
        for (int j = 0; j < 3; j++) {
            int r = row + i - 1, c = column + j - 1;
            value[i][j] = none;
            if (!whole && (r < 0 || r >= plan->rows || c < 0 || c >= plan->columns || !is_there(frame, plan, r, c)))
                continue;
            float found = corrected(here, c, here->factor[c >= middle], corrections);
            value[i][j] = found < xray ? found : none;
            lowest = value[i][j] < lowest ? value[i][j] : lowest;
        }
    }
    if (!is_between(plan, value[1][1])) {
        offset[0] = offset[1] = 0;
        return;
    }
    for (int i = 0; i < 3; i++)
        for (int j = 0; j < 3; j++)
            charge[i][j] = value[i][j] < none ? (double)value[i][j] - lowest : 0;
    offset[0] = centroid_offset(charge[0][1], charge[1][1], charge[2][1]);
    offset[1] = centroid_offset(charge[1][0], charge[1][1], charge[1][2]);
}

#endif
