/* What counting works on: one frame as rows in memory, its corrections and thresholds.
 *
 * A frame comes as the addresses of its sectors' pixels (row-major little-endian uint16 at any alignment; address 0 is
 * a missing sector). Rows are read where they lie; only where a row is spread over several sectors are a few rows at a
 * time put together.
 */
#ifndef MPISTREAM_COUNTING_FRAME_H
#define MPISTREAM_COUNTING_FRAME_H

#include "pixels.h"

/* Calls in the inner loops would cost more than what they do. */
#define INLINE static inline __attribute__((always_inline))

/* Rows are worked on in bands, which stay in the first-level cache between the two looks at them. A power of two. */
enum { BAND_ROWS = 8 };

/* Rows put together are kept in a ring: those of a band, the one above and the one below. A power of two. */
enum { RING_ROWS = 2 * BAND_ROWS };

enum row_dark { NO_ROW_DARK, ROW_DARK_MEAN, ROW_DARK_MEDIAN };

/* How the frames of a scan are counted. Images are rows * columns; each may be NULL. */
struct counting {
    int rows;
    int columns;
    int sectors;
    int side_by_side;             /* a sector holds whole columns of the frame; otherwise whole rows */
    const float *dark;            /* subtracted */
    const float *inverse_gain;    /* multiplied by, after dark or row-dark */
    const uint8_t *keep;          /* 0 for masked pixels, 255 for all others */
    const uint16_t *least;        /* with dark or gain: no raw value below this is above the background */
    const float *half_row_gain;   /* rows * 2: the largest inverse gain of each half-row, at least 0 */
    float background;             /* kept is what lies above this ... */
    float xray;                   /* ... and below this */
    enum row_dark row_dark;
    float row_dark_level;         /* what the statistic of a half-row is brought to */
};

/* Which corrections there are. */
enum { HAS_DARK = 1, HAS_ROW_DARK = 2, HAS_GAIN = 4, HAS_KEEP = 8 };

/* A row and its corrections. Pointers lead to zeros beyond the frame, where the row's sector is missing, and where
 * there is no such correction.
 */
struct frame_row {
    const pixel *raw;
    const float *dark;
    const float *inverse_gain;
    const uint8_t *keep;
    float factor[2];              /* row-dark: of each half-row */
    uint16_t noise[2];            /* row-dark: no raw value of the half-row up to this is above the background */
};

/* One frame, in scratch memory that serves frame after frame. */
struct frame_rows {
    struct frame_row *rows;       /* those of the frame; there is one before the first and one behind the last, too */
    const uint64_t *sectors;      /* addresses */
    int incomplete;               /* a sector is missing */
    int ready;                    /* rows made ready so far */
    uint16_t guess;               /* row-dark: the last median */
    pixel *ring;                  /* RING_ROWS rows, for sectors side by side */
    pixel *half_row;              /* scratch for one half-row */
    uint32_t *candidates;         /* scratch for the groups of a band, and what is found in them */
    uint32_t *found;
    uint8_t (*masked)[2];         /* rows: whether a pixel of the half-row is masked */
    float *values;                /* scratch for three rows with a pixel on either side */
    uint32_t *lanes;              /* of each group of LEAST_GROUP pixels: bit i + 1 for pixel i inside the row, */
    uint32_t *own;                /* bit 0 and 31 for those on either side of it, which `own` leaves out */
};

static inline int largest(int a, int b) { return a > b ? a : b; }
static inline int smallest(int a, int b) { return a < b ? a : b; }

/* Columns looked at together are at least this many, on whatever CPU. */
enum { LEAST_GROUP = 30 };

static inline int corrections_of(const struct counting *plan)
{
    return (plan->dark ? HAS_DARK : 0) | (plan->row_dark ? HAS_ROW_DARK : 0) | (plan->inverse_gain ? HAS_GAIN : 0) |
           (plan->keep ? HAS_KEEP : 0);
}

static inline size_t aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

/* Lays `frame` out in scratch memory (NULL: only measures it); returns the bytes needed. */
static size_t lay_out(struct frame_rows *frame, const struct counting *plan, char *scratch)
{
    size_t columns = (size_t)plan->columns, groups = columns / LEAST_GROUP + 1, used = 0;
    struct frame_row *rows;
    char *zeros;

#define TAKE(member, count)                                                                                            \
    do {                                                                                                               \
        member = (void *)((uintptr_t)scratch + used);                                                                  \
        used += aligned(sizeof(*(member)) * (count));                                                                  \
    } while (0)
    TAKE(rows, (size_t)plan->rows + 2);
    TAKE(frame->ring, plan->side_by_side ? RING_ROWS * columns : 0);
    TAKE(frame->half_row, columns);
    TAKE(frame->masked, (size_t)plan->rows);
    TAKE(frame->candidates, BAND_ROWS * groups);
    TAKE(frame->found, BAND_ROWS * groups);
    TAKE(frame->values, 3 * (columns + 2));
    TAKE(frame->lanes, groups);
    TAKE(frame->own, groups);
    TAKE(zeros, sizeof(float) * columns);
#undef TAKE
    if (scratch == NULL)
        return used;
    memset(zeros, 0, sizeof(float) * columns);
    frame->rows = rows + 1;
    for (int row = -1; row <= plan->rows; row++)
        frame->rows[row] = (struct frame_row){(const pixel *)zeros, (const float *)zeros, (const float *)zeros,
                                              (const uint8_t *)zeros, {0, 0}, {0, 0}};
    memset(frame->masked, 0, (size_t)plan->rows * sizeof *frame->masked);
    for (size_t row = 0; plan->keep && row < (size_t)plan->rows; row++)
        for (size_t column = 0; column < columns; column++)
            frame->masked[row][column >= columns / 2] |= !plan->keep[row * columns + column];
    for (size_t group = 0; group < groups; group++) {
        frame->lanes[group] = frame->own[group] = 0;
        for (size_t lane = 0; lane < LEAST_GROUP + 2; lane++) {
            size_t column = group * LEAST_GROUP + lane - 1; /* before the first: a large number */
            uint32_t bit = column < columns ? 1u << lane : 0;
            frame->lanes[group] |= bit;
            frame->own[group] |= lane > 0 && lane <= LEAST_GROUP ? bit : 0;
        }
    }
    frame->guess = 0;
    return used;
}

static size_t counting_scratch_bytes(const struct counting *plan)
{
    struct frame_rows frame;
    return lay_out(&frame, plan, NULL);
}

static inline int sector_of(const struct counting *plan, int row, int column)
{
    return plan->side_by_side ? column / (plan->columns / plan->sectors) : row / (plan->rows / plan->sectors);
}

/* Points at the rows of the next frame; nothing is read yet. */
static void begin_frame(struct frame_rows *frame, const struct counting *plan, const uint64_t *sectors)
{
    const struct frame_row zeros = frame->rows[-1];
    const int runs = plan->side_by_side ? 1 : plan->sectors, rows_per_run = plan->rows / runs;
    struct frame_row *row = frame->rows;
    size_t first = 0, columns = (size_t)plan->columns;

    frame->sectors = sectors;
    frame->ready = 0;
    frame->incomplete = 0;
    for (int sector = 0; sector < plan->sectors; sector++)
        frame->incomplete |= sectors[sector] == 0;
    for (int run = 0; run < runs; run++) {
        const pixel *raw = (const pixel *)(uintptr_t)sectors[run];
        for (int i = 0; i < rows_per_run; i++, row++, first += columns) {
            if (!plan->side_by_side && !raw) {
                *row = zeros;
                continue;
            }
            row->raw = plan->side_by_side ? frame->ring + i % RING_ROWS * columns : raw + i * columns;
            row->dark = plan->dark ? plan->dark + first : zeros.dark;
            row->inverse_gain = plan->inverse_gain ? plan->inverse_gain + first : zeros.inverse_gain;
            row->keep = plan->keep ? plan->keep + first : zeros.keep;
        }
    }
}

/* The largest raw value that is not above the background, which is not negative. */
static inline uint16_t noise_of(const struct counting *plan)
{
    return (uint16_t)(plan->background < 65535 ? plan->background : 65535);
}

/* The largest raw value that is no x-ray. */
static inline uint16_t last_of(const struct counting *plan)
{
    if (plan->xray > 65535)
        return 65535;
    int whole = (int)plan->xray; /* it is above the background, hence above 0 */
    return (uint16_t)((float)whole < plan->xray ? whole : whole - 1);
}

/* Puts one row together from sectors side by side. */
static void put_row_together(struct frame_rows *frame, const struct counting *plan, int row)
{
    size_t length = (size_t)plan->columns / plan->sectors;
    pixel *out = frame->ring + (size_t)(row % RING_ROWS) * plan->columns;

    for (int sector = 0; sector < plan->sectors; sector++) {
        const pixel *from = (const pixel *)(uintptr_t)frame->sectors[sector];
        if (from)
            memcpy(out + sector * length, from + row * length, length * sizeof *from);
        else
            memset(out + sector * length, 0, length * sizeof *from);
    }
}

/* Has the pixel a value of its own? Not in a missing sector, nor if it is masked. */
static inline int is_there(const struct frame_rows *frame, const struct counting *plan, int row, int column)
{
    if (frame->incomplete && frame->sectors[sector_of(plan, row, column)] == 0)
        return 0;
    return !plan->keep || frame->rows[row].keep[column];
}

/* The corrected value of a pixel of a row that is ready, in a half-row of the given factor. Each operation is rounded
 * once.
 */
INLINE float corrected(const struct frame_row *row, ptrdiff_t column, float factor, int corrections)
{
    float value = (float)row->raw[column];

    if (corrections & HAS_DARK)
        value -= row->dark[column];
    if (corrections & HAS_ROW_DARK)
        value *= factor;
    if (corrections & HAS_GAIN)
        value *= row->inverse_gain[column];
    return value;
}

/* The corrected value of a pixel, 0 where its sector is missing. */
static inline float value_of(const struct frame_rows *frame, const struct counting *plan, int row, int column)
{
    if (frame->incomplete && frame->sectors[sector_of(plan, row, column)] == 0)
        return 0;
    const struct frame_row *here = frame->rows + row;
    return corrected(here, column, here->factor[column >= plan->columns / 2], corrections_of(plan));
}

/* Do the thresholds leave this value? */
static inline int is_between(const struct counting *plan, float value)
{
    return value > plan->background && value < plan->xray;
}

static inline int is_kept(const struct frame_rows *frame, const struct counting *plan, int row, int column)
{
    return is_between(plan, value_of(frame, plan, row, column));
}

/* The value with which a pixel takes part: 0 where the thresholds exclude it. */
static inline float kept_value(const struct frame_rows *frame, const struct counting *plan, int row, int column)
{
    float value = value_of(frame, plan, row, column);
    return is_between(plan, value) ? value : 0;
}

#endif
