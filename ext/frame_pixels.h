/* A frame as it lies in memory, and the corrected values of its rows.
 *
 * A frame comes as the addresses of its sectors' pixels (row-major little-endian uint16 at any alignment; address 0 is
 * a missing sector). Every pixel becomes a float32: exact for raw values, IEEE arithmetic with a dark or a gain.
 */
#ifndef MPISTREAM_FRAME_PIXELS_H
#define MPISTREAM_FRAME_PIXELS_H

#include "pixels.h"

/* The loops over a row are compiled once per instruction set; the loader picks the best one (glibc's ifunc). */
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#if __GNUC__ >= 12
#define FOR_EACH_CPU __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#endif
#endif
#ifndef FOR_EACH_CPU
#define FOR_EACH_CPU
#endif

/* How the sectors lie in a frame, and what is done to its pixels. */
struct frame_pixels {
    int rows;
    int columns;
    int sectors;
    int side_by_side;          /* a sector holds whole columns of the frame; otherwise whole rows */
    const float *dark;         /* rows * columns, or NULL */
    const float *inverse_gain; /* rows * columns, or NULL */
};

/* The corrected values of a run of one sector's row. */
FOR_EACH_CPU
static void correct_run(float *restrict values, const pixel *restrict raw, const float *restrict dark,
                        const float *restrict inverse_gain, int length)
{
    for (int i = 0; i < length; i++)
        values[i] = (float)raw[i];
    if (dark)
        for (int i = 0; i < length; i++)
            values[i] -= dark[i];
    if (inverse_gain)
        for (int i = 0; i < length; i++)
            values[i] *= inverse_gain[i];
}

/* Row `row` of the frame, corrected; a missing sector's pixels are 0 whatever the dark reference says. */
static void correct_row(float *values, const struct frame_pixels *frame, const uint64_t *sectors, int row)
{
    int runs = frame->side_by_side ? frame->sectors : 1;
    int length = frame->columns / runs;
    int rows_per_sector = frame->side_by_side ? frame->rows : frame->rows / frame->sectors;

    for (int run = 0; run < runs; run++) {
        int sector = frame->side_by_side ? run : row / rows_per_sector;
        float *out = values + (size_t)run * length;
        size_t first = (size_t)row * frame->columns + (size_t)run * length;

        if (sectors[sector] == 0) {
            memset(out, 0, length * sizeof(float));
            continue;
        }
        const pixel *raw = (const pixel *)(uintptr_t)sectors[sector] + (size_t)(row % rows_per_sector) * length;
        correct_run(out, raw, frame->dark ? frame->dark + first : NULL,
                    frame->inverse_gain ? frame->inverse_gain + first : NULL, length);
    }
}

#endif
