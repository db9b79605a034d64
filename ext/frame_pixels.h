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

/* The part of a row that lies in one sector: the whole row, or one of several beside each other. */
struct run {
    int sector;
    int length;
    size_t offset; /* of its first pixel in the sector */
    size_t first;  /* the same pixel in the frame */
};

static inline int runs_per_row(const struct frame_pixels *frame) { return frame->side_by_side ? frame->sectors : 1; }

static inline struct run run_of(const struct frame_pixels *frame, int row, int number)
{
    int length = frame->columns / runs_per_row(frame);
    int rows_per_sector = frame->side_by_side ? frame->rows : frame->rows / frame->sectors;
    struct run run = {frame->side_by_side ? number : row / rows_per_sector, length,
                      (size_t)(row % rows_per_sector) * length,
                      (size_t)row * frame->columns + (size_t)number * length};
    return run;
}

static inline const pixel *pixels_of(const struct run *run, const uint64_t *sectors)
{
    return (const pixel *)(uintptr_t)sectors[run->sector] + run->offset;
}

/* Row `row` of the frame, corrected; a missing sector's pixels are 0 whatever the dark reference says. */
static void correct_row(float *values, const struct frame_pixels *frame, const uint64_t *sectors, int row)
{
    for (int number = 0; number < runs_per_row(frame); number++) {
        struct run run = run_of(frame, row, number);
        float *out = values + (size_t)number * run.length;

        if (sectors[run.sector] == 0) {
            memset(out, 0, run.length * sizeof(float));
            continue;
        }
        correct_run(out, pixels_of(&run, sectors), frame->dark ? frame->dark + run.first : NULL,
                    frame->inverse_gain ? frame->inverse_gain + run.first : NULL, run.length);
    }
}

#endif
