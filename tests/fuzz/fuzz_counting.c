/* Counts random frames in every way that the CPU has, in memory without a byte to spare, and compares all with slow code.
 */
#include "rounds.h"
#include "slow_counting.h"

enum { MOST_SECTORS = 64, FRAMES_PER_ROUND = 4 };

static void fail(const struct counting *plan, const char *path, const char *what)
{
    fprintf(stderr, "%s: another %s than the definition's, of %d x %d pixels in %d sectors %s\n", path, what, plan->rows,
            plan->columns, plan->sectors, plan->side_by_side ? "side by side" : "above each other");
    abort();
}

/* --- random frames, and what they are counted with --- */

static float any_float(void)
{
    union {
        uint32_t bits;
        float value;
    } any;
    do
        any.bits = (uint32_t)random_bits();
    while (!isfinite(any.value));
    return any.value;
}

static float random_dark(int kind)
{
    switch (kind) {
    case 0:
        return (float)random_between(20, 40);
    case 1:
        return 30 + (float)(6 * random_fraction());
    case 2:
        return (float)random_between(-70000, 70000);
    case 3:
        return (float)(random_fraction() - 0.5) * 1e30f;
    default:
        return any_float();
    }
}

/* 1 / gain, finite and never 0. */
static float random_inverse_gain(int kind)
{
    float value;

    switch (kind) {
    case 0:
        return 0.9f + 0.2f * (float)random_fraction();
    case 1:
        return ldexpf(1, (int)random_between(-3, 3));
    case 2:
        return (one_in(2) ? -1 : 1) * (0.5f + (float)random_fraction());
    default:
        do
            value = any_float();
        while (value == 0);
        return value;
    }
}

static float random_threshold(void)
{
    switch (random_between(0, 7)) {
    case 0:
        return 0;
    case 1:
        return (float)random_between(-40, 70);
    case 2:
        return (float)random_between(65530, 65540);
    case 3:
        return one_in(2) ? INFINITY : -INFINITY;
    case 4:
        return any_float();
    default:
        return (float)(100 * random_fraction());
    }
}

/* The corrected value of one raw pixel, without row-dark. */
static float value_of_raw(const struct counting *plan, size_t i, int raw)
{
    float value = (float)raw;
    if (plan->dark)
        value = value - plan->dark[i];
    return plan->inverse_gain ? value * plan->inverse_gain[i] : value;
}

/* The tightest that may be asked for, or less: the lowest raw value that can be above the background. */
static uint16_t least_raw(const struct counting *plan, size_t i)
{
    int low = 0, high = 65535;

    if (plan->inverse_gain && plan->inverse_gain[i] < 0)
        return 0;
    while (low < high) {
        int middle = (low + high) / 2;
        if (value_of_raw(plan, i, middle) > plan->background)
            high = middle;
        else
            low = middle + 1;
    }
    return (uint16_t)random_between(one_in(3) ? 0 : low, low);
}

static void random_plan(struct counting *plan)
{
    int divides, kind = (int)random_between(0, 4);

    memset(plan, 0, sizeof *plan);
    plan->rows = (int)random_between(1, one_in(4) ? 40 : 12);
    plan->columns = (int)random_between(1, one_in(4) ? 200 : 70);
    if (one_in(20))
        plan->columns = 576;
    plan->side_by_side = one_in(2);
    divides = plan->side_by_side ? plan->columns : plan->rows;
    do
        plan->sectors = (int)random_between(1, smallest(divides, MOST_SECTORS));
    while (divides % plan->sectors);

    size_t pixels = (size_t)plan->rows * plan->columns;
    if (one_in(2)) {
        float *dark = guarded(pixels * sizeof *dark, sizeof *dark);
        for (size_t i = 0; i < pixels; i++)
            dark[i] = random_dark(kind);
        plan->dark = dark;
    } else if (one_in(2)) {
        const float levels[] = {30, 29.8f, 1, 0.01f, 4000, 65535, 1e-30f, 1e-42f};
        plan->row_dark = one_in(2) ? ROW_DARK_MEAN : ROW_DARK_MEDIAN;
        plan->row_dark_level = levels[random_between(0, one_in(4) ? 7 : 5)];
    }
    if (one_in(2)) {
        float *inverse_gain = guarded(pixels * sizeof *inverse_gain, sizeof *inverse_gain);
        int gain_kind = (int)random_between(0, 3);
        for (size_t i = 0; i < pixels; i++)
            inverse_gain[i] = random_inverse_gain(gain_kind);
        plan->inverse_gain = inverse_gain;
    }
    if (one_in(2)) {
        uint8_t *keep = guarded(pixels, 1);
        int masked = (int)random_between(1, 100);
        for (size_t i = 0; i < pixels; i++)
            keep[i] = random_between(1, 100) <= masked && one_in(2) ? 0 : 255;
        plan->keep = keep;
    }
    do {
        plan->background = random_threshold();
        plan->xray = one_in(4) ? nextafterf(plan->background, INFINITY) : one_in(2) ? 2000 : random_threshold();
    } while (!(plan->background < plan->xray));
    if (plan->row_dark && plan->inverse_gain) {
        float *half_row_gain = guarded((size_t)plan->rows * 2 * sizeof *half_row_gain, sizeof *half_row_gain);
        for (int half = 0; half < 2 * plan->rows; half++)
            half_row_gain[half] = 0;
        for (size_t i = 0; i < pixels; i++) {
            float *most = &half_row_gain[2 * (i / plan->columns) + ((int)(i % plan->columns) >= plan->columns / 2)];
            *most = plan->inverse_gain[i] > *most ? plan->inverse_gain[i] : *most;
        }
        plan->half_row_gain = half_row_gain;
    }
    if (!plan->row_dark && (plan->dark || plan->inverse_gain)) {
        uint16_t *least = guarded(pixels * sizeof *least, sizeof *least);
        for (size_t i = 0; i < pixels; i++)
            least[i] = least_raw(plan, i);
        plan->least = least;
    }
}

static void random_pixels(uint16_t *raw, const struct counting *plan)
{
    int pixels = plan->rows * plan->columns, style = (int)random_between(0, 8);
    int rare = (int)random_between(1, 60);
    uint16_t constant = (uint16_t)(one_in(3) ? 0 : one_in(2) ? 65535 : random_between(0, 65535));

    for (int i = 0; i < pixels; i++) {
        switch (style) {
        case 0:
            raw[i] = constant;
            break;
        case 1:
            raw[i] = (uint16_t)random_between(0, 65535);
            break;
        case 2:
            raw[i] = (uint16_t)(constant + random_between(0, 3));
            break;
        case 3: /* as many electrons as there can be */
            raw[i] = i / plan->columns % 2 || i % plan->columns % 2 ? 0 : 100;
            break;
        case 4: /* around one of the thresholds */
            raw[i] = (uint16_t)(fmaxf(fminf(one_in(2) ? plan->background : plan->xray, 65533), 2) + random_between(-2, 2));
            break;
        case 5:
            raw[i] = one_in(rare) ? (uint16_t)random_between(1, 200) : 0;
            break;
        case 6:
            raw[i] = (uint16_t)random_between(60000, 65535);
            break;
        default:
            raw[i] = (uint16_t)(random_between(25, 35) + (one_in(rare) ? random_between(10, 300) : 0));
            raw[i] = one_in(500) ? 5000 : raw[i];
        }
    }
}

/* Cuts the frame's pixels into sectors, some of which are missing. */
static void cut_into_sectors(struct slow_frame *frame, const struct counting *plan, uint64_t *sectors)
{
    int missing = one_in(2) ? (int)random_between(2, 4) : 0;
    int rows = plan->side_by_side ? plan->rows : plan->rows / plan->sectors;
    int columns = plan->side_by_side ? plan->columns / plan->sectors : plan->columns;

    for (int sector = 0; sector < plan->sectors; sector++) {
        int gone = missing && one_in(missing);
        char *bytes = gone ? NULL : guarded((size_t)rows * columns * sizeof(uint16_t), 1);
        for (int i = 0; i < rows * columns; i++) {
            int row = i / columns + (plan->side_by_side ? 0 : sector * rows);
            int column = i % columns + (plan->side_by_side ? sector * columns : 0);
            int at = row * plan->columns + column;
            frame->came[at] = !gone;
            frame->good[at] = !plan->keep || plan->keep[at];
            if (bytes)
                memcpy(bytes + 2 * i, &frame->raw[at], sizeof(uint16_t));
        }
        sectors[sector] = (uint64_t)(uintptr_t)bytes;
    }
}

/* --- the comparison --- */

/* What the definition finds in one frame. */
struct found {
    uint32_t n, indices[MOST_PIXELS];
    int8_t centroids[MOST_PIXELS][2];
    uint64_t moments[2], on_annuli[MOST_ANNULI];
};

static void find_slowly(struct found *found, struct slow_frame *frame, const struct counting *plan,
                        const struct frame_sums *sums)
{
    memset(found->moments, 0, sizeof found->moments);
    memset(found->on_annuli, 0, sizeof found->on_annuli);
    found->n = 0;
    slow_correct(frame, plan);
    for (int i = 0; i < plan->rows * plan->columns; i++) {
        int row = i / plan->columns, column = i % plan->columns;
        if (!slow_is_electron(frame, plan, row, column))
            continue;
        slow_centroid(frame, plan, row, column, found->centroids[found->n]);
        found->indices[found->n++] = (uint32_t)i;
        found->moments[0] += (uint64_t)row;
        found->moments[1] += (uint64_t)column;
        for (int annulus = 0; annulus < sums->annuli; annulus++)
            found->on_annuli[annulus] += sums->labels[i] >> annulus & 1;
    }
}

static void do_round(void)
{
    static struct slow_frame frames[FRAMES_PER_ROUND];
    static struct found found[FRAMES_PER_ROUND];
    struct counting plan;
    struct frame_sums sums;
    uint64_t *sectors[FRAMES_PER_ROUND], spread[256];

    random_plan(&plan);
    size_t pixels = (size_t)plan.rows * plan.columns;
    size_t most = (size_t)((plan.rows + 1) / 2) * ((plan.columns + 1) / 2);
    spread_labels(spread);
    sums.annuli = (int)random_between(0, MOST_ANNULI);
    sums.labels = guarded(pixels, 1);
    sums.spread = spread;
    for (int i = 0; i < FRAMES_PER_ROUND; i++) {
        sectors[i] = guarded((size_t)plan.sectors * sizeof *sectors[i], sizeof *sectors[i]);
        random_pixels(frames[i].raw, &plan);
        cut_into_sectors(&frames[i], &plan, sectors[i]);
        find_slowly(&found[i], &frames[i], &plan, &sums);
    }
    for (const struct counting_path *path = counting_paths(); path->name; path++) {
        struct frame_rows rows;
        int with_centroids = !one_in(4);
        uint32_t *on_pixels = calloc(pixels, sizeof *on_pixels);
        sums.pattern = guarded(pixels * sizeof *sums.pattern, sizeof *sums.pattern);
        memset(sums.pattern, 0, pixels * sizeof *sums.pattern);
        lay_out(&rows, &plan, guarded(counting_scratch_bytes(&plan), 64));
        for (int i = 0; i < FRAMES_PER_ROUND; i++) {
            uint32_t *indices = guarded(most * sizeof *indices, sizeof *indices);
            int8_t(*centroids)[2] = guarded(most * sizeof *centroids, 1);
            uint64_t *moments = guarded(2 * sizeof *moments, sizeof *moments);
            uint64_t *on_annuli = guarded((size_t)sums.annuli * sizeof *on_annuli, sizeof *on_annuli);
            uint32_t n = path->count_frame(&rows, &plan, sectors[i], indices, with_centroids ? centroids : NULL);

            if (n != found[i].n || memcmp(indices, found[i].indices, n * sizeof *indices))
                fail(&plan, path->name, "set of electrons");
            if (with_centroids && memcmp(centroids, found[i].centroids, n * sizeof *centroids))
                fail(&plan, path->name, "centroid");
            path->add_sums(&sums, &plan, indices, n, moments, on_annuli);
            if (memcmp(moments, found[i].moments, sizeof found[i].moments))
                fail(&plan, path->name, "moment");
            if (memcmp(on_annuli, found[i].on_annuli, (size_t)sums.annuli * sizeof *on_annuli))
                fail(&plan, path->name, "sum over an annulus");
            for (uint32_t k = 0; k < n; k++)
                on_pixels[indices[k]]++;
        }
        if (memcmp(on_pixels, sums.pattern, pixels * sizeof *on_pixels))
            fail(&plan, path->name, "diffraction pattern");
        free(on_pixels);
    }
}

int main(int argc, char **argv)
{
    uint64_t rounds = do_rounds(argc, argv, do_round);

    printf("%llu rounds of %d frames, each by", (unsigned long long)rounds, FRAMES_PER_ROUND);
    for (const struct counting_path *path = counting_paths(); path->name; path++)
        printf(" %s", path->name);
    printf(": all as the definition says (seeds from %s)\n", argv[1]);
    return 0;
}
