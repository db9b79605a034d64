/* Samples random frames and adds them up within bounds, in memory without a byte to spare, and compares all with slow
 * code.
 */
#include <math.h>

#include "pixel_statistics.h"
#include "rounds.h"

enum { FRAMES_PER_ROUND = 3, MOST_PIXELS = 40 * 70, MOST_SECTORS = 70 };

static struct frame_pixels shape;
static uint16_t raw[FRAMES_PER_ROUND][MOST_PIXELS];
static uint8_t came[FRAMES_PER_ROUND][MOST_SECTORS];
static uint64_t addresses[FRAMES_PER_ROUND][MOST_SECTORS];

static void fail(const char *what)
{
    fprintf(stderr, "another %s than by slow code, of %d x %d pixels in %d sectors %s\n", what, shape.rows,
            shape.columns, shape.sectors, shape.side_by_side ? "side by side" : "above each other");
    abort();
}

static int pixels_of_frame(void) { return shape.rows * shape.columns; }

static int sector_of(int at)
{
    int row = at / shape.columns, column = at % shape.columns;
    return shape.side_by_side ? column / (shape.columns / shape.sectors) : row / (shape.rows / shape.sectors);
}

static float *random_image(float lowest, float highest)
{
    float *image = guarded((size_t)pixels_of_frame() * sizeof *image, sizeof *image);

    for (int i = 0; i < pixels_of_frame(); i++)
        image[i] = lowest + (highest - lowest) * (float)random_fraction();
    return image;
}

static void random_frames(int complete)
{
    memset(&shape, 0, sizeof shape);
    shape.rows = (int)random_between(1, 40);
    shape.columns = (int)random_between(1, 70);
    shape.side_by_side = one_in(2);
    do
        shape.sectors = (int)random_between(1, shape.side_by_side ? shape.columns : shape.rows);
    while ((shape.side_by_side ? shape.columns : shape.rows) % shape.sectors);
    int of_sector = pixels_of_frame() / shape.sectors, wild = one_in(4);
    for (int f = 0; f < FRAMES_PER_ROUND; f++) {
        int filled[MOST_SECTORS] = {0};
        for (int sector = 0; sector < shape.sectors; sector++) {
            came[f][sector] = complete || !one_in(4);
            addresses[f][sector] = came[f][sector] ? (uint64_t)(uintptr_t)guarded((size_t)of_sector * 2, 1) : 0;
        }
        for (int i = 0; i < pixels_of_frame(); i++) {
            int sector = sector_of(i);
            raw[f][i] = (uint16_t)(wild ? random_between(0, 65535) : random_between(25, 35));
            raw[f][i] = one_in(50) ? (uint16_t)(one_in(2) ? 65535 : 0) : raw[f][i];
            if (came[f][sector])
                memcpy((char *)(uintptr_t)addresses[f][sector] + 2 * filled[sector]++, &raw[f][i], 2);
        }
    }
}

static uint8_t *random_mask(void)
{
    if (one_in(2))
        return NULL;
    uint8_t *mask = guarded((size_t)pixels_of_frame(), 1);
    for (int i = 0; i < pixels_of_frame(); i++)
        mask[i] = one_in(10);
    return mask;
}

static void compare_histograms(const uint32_t *parts, const uint32_t *expected, int bins, const char *what)
{
    for (int bin = 0; bin < bins; bin++) {
        uint32_t count = 0;
        for (int part = 0; part < PARTS; part++)
            count += parts[(size_t)part * bins + bin];
        if (count != expected[bin])
            fail(what);
    }
}

static void sample_raw(void)
{
    static uint32_t expected[RAW_VALUES];
    uint8_t *mask = random_mask();
    uint16_t *row = guarded((size_t)shape.columns * sizeof *row, sizeof *row);
    uint32_t *counts = guarded(sizeof *counts * PARTS * RAW_VALUES, sizeof *counts);

    memset(counts, 0, sizeof *counts * PARTS * RAW_VALUES);
    memset(expected, 0, sizeof expected);
    for (int f = 0; f < FRAMES_PER_ROUND; f++) {
        sample_raw_frame(&shape, addresses[f], mask, row, counts);
        for (int i = 0; i < pixels_of_frame(); i++)
            expected[raw[f][i]] += !mask || !mask[i];
    }
    compare_histograms(counts, expected, RAW_VALUES, "histogram of raw values");
}

static void sample_corrected(void)
{
    static uint32_t expected[BINS];
    uint8_t *mask = random_mask();
    float *values = guarded((size_t)shape.columns * sizeof *values, sizeof *values);
    int32_t *row_bins = guarded((size_t)shape.columns * sizeof *row_bins, sizeof *row_bins);
    uint32_t *counts = guarded(sizeof *counts * PARTS * BINS, sizeof *counts);

    shape.dark = one_in(3) ? NULL : random_image(one_in(3) ? -1e9f : 20, one_in(3) ? 1e9f : 40);
    shape.inverse_gain = one_in(3) ? NULL : random_image(one_in(3) ? -1e30f : 0.5f, one_in(3) ? 1e30f : 2);
    memset(counts, 0, sizeof *counts * PARTS * BINS);
    memset(expected, 0, sizeof expected);
    for (int f = 0; f < FRAMES_PER_ROUND; f++) {
        struct frame_moments moments;
        double minimum = INFINITY, maximum = -INFINITY;
        int64_t sum = 0;
        uint64_t square_sum = 0;
        sample_frame(&shape, addresses[f], mask, values, row_bins, counts, &moments);
        for (int i = 0; i < pixels_of_frame(); i++) {
            float value = raw[f][i];
            if (mask && mask[i])
                continue;
            value = shape.dark ? value - shape.dark[i] : value;
            value = shape.inverse_gain ? value * shape.inverse_gain[i] : value;
            value = fminf(fmaxf(value, FIRST_BIN), LAST_BIN);
            int64_t steps = (int64_t)round((double)value * STEPS_PER_UNIT);
            expected[(int)round(value) - FIRST_BIN]++;
            minimum = fmin(minimum, value);
            maximum = fmax(maximum, value);
            sum += steps;
            square_sum += (uint64_t)(steps * steps);
        }
        if (moments.minimum != minimum || moments.maximum != maximum || moments.sum != sum ||
            moments.square_sum != square_sum)
            fail("moment of corrected values");
    }
    compare_histograms(counts, expected, BINS, "histogram of corrected values");
}

static void add_within(void)
{
    size_t pixels = (size_t)pixels_of_frame();
    uint16_t *lowest = guarded(pixels * sizeof *lowest, sizeof *lowest);
    uint16_t *width = guarded(pixels * sizeof *width, sizeof *width);
    uint64_t *all = guarded((size_t)FRAMES_PER_ROUND * shape.sectors * sizeof *all, sizeof *all);
    struct bounded_sums sums = {lowest, width, guarded(pixels * sizeof(uint32_t), sizeof(uint32_t)),
                                guarded(pixels * sizeof(uint64_t), sizeof(uint64_t)),
                                guarded(pixels * sizeof(uint64_t), sizeof(uint64_t))};

    for (size_t i = 0; i < pixels; i++) {
        lowest[i] = (uint16_t)random_between(0, one_in(4) ? 65535 : 30);
        width[i] = (uint16_t)random_between(0, one_in(4) ? 65535 - lowest[i] : (lowest[i] > 65525 ? 0 : 10));
        sums.used[i] = 0;
        sums.sum[i] = sums.square_sum[i] = 0;
    }
    for (int f = 0; f < FRAMES_PER_ROUND; f++)
        memcpy(all + (size_t)f * shape.sectors, addresses[f], (size_t)shape.sectors * sizeof *all);
    add_frames_within_bounds(&shape, all, FRAMES_PER_ROUND, &sums);
    for (size_t i = 0; i < pixels; i++) {
        uint64_t used = 0, sum = 0, square_sum = 0;
        for (int f = 0; f < FRAMES_PER_ROUND; f++) {
            int64_t above = (int64_t)raw[f][i] - lowest[i];
            if (!came[f][sector_of((int)i)] || above < 0 || above > width[i])
                continue;
            used++;
            sum += (uint64_t)above;
            square_sum += (uint64_t)(above * above);
        }
        if (sums.used[i] != used || sums.sum[i] != sum || sums.square_sum[i] != square_sum)
            fail("sum within bounds");
    }
}

static void do_round(void)
{
    random_frames(1);
    sample_raw();
    sample_corrected();
    random_frames(0);
    add_within();
}

int main(int argc, char **argv)
{
    uint64_t rounds = do_rounds(argc, argv, do_round);

    printf("%llu rounds of %d frames: all statistics as by slow code (seeds from %s)\n", (unsigned long long)rounds,
           FRAMES_PER_ROUND, argv[1]);
    return 0;
}
