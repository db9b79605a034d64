/* What counting is measured against: each pixel read once, and one comparison for each vector of pixels. */
#ifndef MPISTREAM_MEMORY_LIMIT_H
#define MPISTREAM_MEMORY_LIMIT_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define HAS_64_BYTE_VECTORS 1
#else
#define HAS_64_BYTE_VECTORS 0
#endif

/* Results are collected in as many variables, so that no step waits for the one before. */
enum { STREAMS = 4 };

#if HAS_64_BYTE_VECTORS
__attribute__((target("avx512f,avx512bw")))
static int any_above_avx512(const uint8_t *bytes, size_t vectors, uint16_t background)
{
    const __m512i limit = _mm512_set1_epi16((short)background);
    __mmask32 found[STREAMS] = {0};
    size_t i = 0;

    for (; i + STREAMS <= vectors; i += STREAMS)
        for (int k = 0; k < STREAMS; k++)
            found[k] |= _mm512_cmpgt_epu16_mask(_mm512_loadu_si512(bytes + 64 * (i + k)), limit);
    for (; i < vectors; i++)
        found[0] |= _mm512_cmpgt_epu16_mask(_mm512_loadu_si512(bytes + 64 * i), limit);
    return (found[0] | found[1] | found[2] | found[3]) != 0;
}
#endif

/* The compiler makes vectors of it, of what every CPU of its target has. */
static int any_above_plain(const uint8_t *bytes, size_t pixels, uint16_t background)
{
    uint16_t found = 0;

    for (size_t i = 0; i < pixels; i++) {
        uint16_t pixel;
        memcpy(&pixel, bytes + 2 * i, sizeof pixel);
        found |= (uint16_t)-(pixel > background);
    }
    return found != 0;
}

static int has_64_byte_vectors(void)
{
#if HAS_64_BYTE_VECTORS
    return __builtin_cpu_supports("avx512bw");
#else
    return 0;
#endif
}

/* Whether any of the uint16 `pixels` at `bytes`, at any alignment, is above `background`. Reads all of them. */
static int any_above(const uint8_t *bytes, size_t pixels, uint16_t background)
{
#if HAS_64_BYTE_VECTORS
    if (has_64_byte_vectors()) {
        size_t vectors = pixels / 32;
        int found = any_above_avx512(bytes, vectors, background);
        return found | any_above_plain(bytes + 64 * vectors, pixels - 32 * vectors, background);
    }
#endif
    return any_above_plain(bytes, pixels, background);
}

#endif
