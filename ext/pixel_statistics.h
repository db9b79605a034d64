/* Statistics of pixel values: histograms for calibration, bounded sums for dark references.
 *
 * All that is summed is an integer: results do not depend on the order of frames. No allocation, no policy; safe to
 * call without the GIL.
 */
#ifndef MPISTREAM_PIXEL_STATISTICS_H
#define MPISTREAM_PIXEL_STATISTICS_H

#include "frame_pixels.h"

/* Bins have a width of 1; a corrected value outside them counts as the nearest end. */
enum { FIRST_BIN = -65536, LAST_BIN = 131071, BINS = LAST_BIN - FIRST_BIN + 1, STEPS_PER_UNIT = 32, RAW_VALUES = 65536 };

/* A histogram is kept in parts which are added up at the end: values that follow each other are often equal, and adding
 * to a count that was just written waits for that write.
 */
enum { PARTS = 4 };

struct frame_moments {
    float minimum;
    float maximum;
    int64_t sum;          /* of round(value * STEPS_PER_UNIT) */
    uint64_t square_sum;  /* of its square; below 2^63 for 2^18.4 pixels */
};

/* Adds values below `values` to the parts of a histogram. */
static void add_raw(uint32_t *counts, const pixel *raw, int length)
{
    int i = 0;

    for (; i + PARTS <= length; i += PARTS)
        for (int part = 0; part < PARTS; part++)
            counts[part * RAW_VALUES + raw[i + part]]++;
    for (; i < length; i++)
        counts[raw[i]]++;
}

static void add_bins(uint32_t *counts, const int32_t *bins, int length)
{
    int i = 0;

    for (; i + PARTS <= length; i += PARTS)
        for (int part = 0; part < PARTS; part++)
            counts[part * BINS + bins[i + part]]++;
    for (; i < length; i++)
        counts[bins[i]]++;
}

/* Moves the pixels that are not masked to the front; returns their number. `mask` is 0 for good pixels. */
static int keep_good_pixels(pixel *kept, const pixel *raw, const uint8_t *mask, int length)
{
    int n = 0;

    for (int i = 0; i < length; i++) {
        kept[n] = raw[i];
        n += !mask[i];
    }
    return n;
}

static int keep_good_values(float *values, const uint8_t *mask, int length)
{
    int n = 0;

    for (int i = 0; i < length; i++) {
        values[n] = values[i];
        n += !mask[i];
    }
    return n;
}

/* Adds the raw pixels of a complete frame to `counts`, PARTS histograms of RAW_VALUES bins. `mask` may be NULL. */
static void sample_raw_frame(const struct frame_pixels *frame, const uint64_t *sectors, const uint8_t *mask,
                             uint16_t *scratch_row, uint32_t *counts)
{
    for (int row = 0; row < frame->rows; row++)
        for (int number = 0; number < runs_per_row(frame); number++) {
            struct run run = run_of(frame, row, number);
            const pixel *raw = pixels_of(&run, sectors);
            int length = run.length;

            if (mask && memchr(mask + run.first, 1, length)) {
                length = keep_good_pixels(scratch_row, raw, mask + run.first, length);
                raw = scratch_row;
            }
            add_raw(counts, raw, length);
        }
}

/* To the nearest integer, ties away from zero. Exact for the values of a histogram in steps. */
static inline int32_t nearest(float value)
{
    int32_t whole = (int32_t)value;
    float rest = value - (float)whole;

    return whole + (rest >= 0.5f) - (rest <= -0.5f);
}

/* The bins of a row's values, which are cut off at the ends of the histogram; adds to the moments. */
FOR_EACH_CPU
static void bin_row(int32_t *restrict bins, float *restrict values, int length, struct frame_moments *moments)
{
    float minimum = moments->minimum, maximum = moments->maximum;
    int64_t sum = 0;
    uint64_t square_sum = 0;

    for (int i = 0; i < length; i++) {
        float value = values[i];
        value = value < (float)FIRST_BIN ? (float)FIRST_BIN : value;
        value = value > (float)LAST_BIN ? (float)LAST_BIN : value;
        values[i] = value;
        bins[i] = nearest(value) - FIRST_BIN;
    }
    for (int i = 0; i < length; i++) {
        minimum = values[i] < minimum ? values[i] : minimum;
        maximum = values[i] > maximum ? values[i] : maximum;
    }
    for (int i = 0; i < length; i++) {
        int64_t steps = nearest(values[i] * STEPS_PER_UNIT);
        sum += steps;
        square_sum += (uint64_t)(steps * steps);
    }
    moments->minimum = minimum;
    moments->maximum = maximum;
    moments->sum += sum;
    moments->square_sum += square_sum;
}

/* Adds the corrected pixels of a complete frame to `counts`, PARTS histograms of BINS bins. `mask` may be NULL. */
static void sample_frame(const struct frame_pixels *frame, const uint64_t *sectors, const uint8_t *mask,
                         float *row_values, int32_t *row_bins, uint32_t *counts, struct frame_moments *moments)
{
    moments->minimum = __builtin_inff();
    moments->maximum = -__builtin_inff();
    moments->sum = 0;
    moments->square_sum = 0;
    for (int row = 0; row < frame->rows; row++) {
        int length = frame->columns;

        correct_row(row_values, frame, sectors, row);
        if (mask)
            length = keep_good_values(row_values, mask + (size_t)row * frame->columns, length);
        bin_row(row_bins, row_values, length, moments);
        add_bins(counts, row_bins, length);
    }
}

/* Sums over frames of every pixel's values within its bounds, images of rows * columns.
 *
 * A value v is within the bounds where 0 <= v - lowest <= width; summed is v - lowest.
 */
struct bounded_sums {
    const uint16_t *lowest;
    const uint16_t *width;
    uint32_t *used;           /* values within the bounds */
    uint64_t *sum;
    uint64_t *square_sum;
};

FOR_EACH_CPU
static void add_within_bounds(const struct bounded_sums *sums, const pixel *restrict raw, size_t first, int length)
{
    const uint16_t *restrict lowest = sums->lowest + first, *restrict width = sums->width + first;
    uint32_t *restrict used = sums->used + first;
    uint64_t *restrict sum = sums->sum + first, *restrict square_sum = sums->square_sum + first;

    for (int i = 0; i < length; i++) {
        /* below `lowest` it wraps around, beyond every width: `lowest` + `width` is no more than 65535 */
        uint16_t above = (uint16_t)(raw[i] - lowest[i]);
        uint32_t within = above <= width[i];
        uint32_t value = within ? above : 0;

        used[i] += within;
        sum[i] += value;
        square_sum[i] += value * value;
    }
}

/* Adds the frames, given by the addresses of their sectors; missing sectors add nothing. */
static void add_frames_within_bounds(const struct frame_pixels *frame, const uint64_t *sectors, int n_frames,
                                     const struct bounded_sums *sums)
{
    /* A row's sums stay in the cache for all frames. */
    for (int row = 0; row < frame->rows; row++)
        for (int number = 0; number < runs_per_row(frame); number++) {
            struct run run = run_of(frame, row, number);

            for (int i = 0; i < n_frames; i++) {
                const uint64_t *frame_sectors = sectors + (size_t)i * frame->sectors;
                if (frame_sectors[run.sector])
                    add_within_bounds(sums, pixels_of(&run, frame_sectors), run.first, run.length);
            }
        }
}

#endif
