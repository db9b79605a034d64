/* Electron counting: the instruction sets, and the choice among them. No allocation, no policy; safe to call without
 * the GIL. docs/counting.md has the definition of an electron.
 */
#ifndef MPISTREAM_ELECTRON_COUNTING_H
#define MPISTREAM_ELECTRON_COUNTING_H

#include "centroid.h"
#include "counting_frame.h"
#include "exact_counting.h"

/* At most this many annuli: a bit of a label each. */
enum { MOST_ANNULI = 8 };

/* Sums beside the electrons. */
struct frame_sums {
    uint32_t *pattern;     /* rows * columns: electrons on each pixel, over all frames */
    const uint8_t *labels; /* rows * columns: bit k is set where the pixel lies on annulus k */
    const uint64_t *spread; /* of a label: byte k is 1 where bit k is set */
    int annuli;
};

typedef uint32_t (*count_frame_function)(struct frame_rows *, const struct counting *, const uint64_t *, uint32_t *,
                                         int8_t (*)[2]);
typedef void (*add_sums_function)(const struct frame_sums *, const struct counting *, const uint32_t *, uint32_t,
                                  uint64_t *, uint64_t *);

/* One instruction set's way through a frame. */
struct counting_path {
    const char *name;
    count_frame_function count_frame;
    add_sums_function add_sums;
};

#define NAME(function) function##_portable
#define TARGET
#include "counting_plain.h"
#include "row_dark.h"
#include "counting_paths.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define NAME(function) function##_avx2
#define TARGET __attribute__((target("avx2,bmi,bmi2,popcnt")))
#include "counting_plain.h"
#include "row_dark.h"
#include "counting_paths.h"

#define NAME(function) function##_avx512
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,bmi,bmi2,popcnt")))
#include "counting_avx512.h"
#include "row_dark.h"
#include "counting_paths.h"

#define PORTABLE_NAME "portable"
#elif defined(__aarch64__)
#define PORTABLE_NAME "neon" /* every 64-bit ARM has it, and compilers use it unasked */
#else
#define PORTABLE_NAME "portable"
#endif

/* The paths that this CPU can take, best first, ended by a path without a name. */
static const struct counting_path *counting_paths(void)
{
    static const struct counting_path all[] = {
#if defined(__x86_64__)
        {"avx512", count_frame_avx512, add_sums_avx512},
        {"avx2", count_frame_avx2, add_sums_avx2},
#endif
        {PORTABLE_NAME, count_frame_portable, add_sums_portable},
        {NULL, NULL, NULL},
    };
    int first = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!(__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("bmi2")))
        first = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") ? 1 : 2;
#endif
    return all + first;
}

/* The value of each pixel's label as eight counters of a byte each. */
static void spread_labels(uint64_t spread[256])
{
    for (int label = 0; label < 256; label++) {
        spread[label] = 0;
        for (int bit = 0; bit < MOST_ANNULI; bit++)
            spread[label] |= (uint64_t)(label >> bit & 1) << 8 * bit;
    }
}

#endif
