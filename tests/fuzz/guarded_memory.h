/* Memory of exactly the size asked for: one byte read or written beyond either end ends the program.
 *
 * AddressSanitizer sees what compilers make of C, but not what masked vector loads and stores touch: so every other
 * buffer ends, or begins, at a page that may not be touched, where the CPU itself finds them.
 */
#ifndef MPISTREAM_GUARDED_MEMORY_H
#define MPISTREAM_GUARDED_MEMORY_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* splitmix64 */
static uint64_t random_state;

static uint64_t random_bits(void)
{
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* Of `lowest` to `highest`, both included. */
static int64_t random_between(int64_t lowest, int64_t highest)
{
    return lowest + (int64_t)(random_bits() % (uint64_t)(highest - lowest + 1));
}

static int one_in(int n) { return random_between(1, n) == 1; }

static double random_fraction(void) { return (double)(random_bits() >> 11) * 0x1p-53; }

enum { MOST_BUFFERS = 512 };

static struct {
    void *start;
    size_t mapped; /* 0: from malloc */
} buffers[MOST_BUFFERS];
static int n_buffers;

static void *kept_buffer(void *start, size_t mapped)
{
    if (n_buffers == MOST_BUFFERS || start == NULL || start == MAP_FAILED) {
        fprintf(stderr, "no memory\n");
        exit(2);
    }
    buffers[n_buffers].start = start;
    buffers[n_buffers++].mapped = mapped;
    return start;
}

/* `bytes` bytes of garbage, aligned to `alignment` (a power of two) but to no more where that can be had. */
static void *guarded(size_t bytes, size_t alignment)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), pages = (bytes + page) / page * page;
    int way = (int)random_between(0, 2);
    char *buffer;

    if (way == 0 && alignment <= 8) {
        buffer = (char *)kept_buffer(malloc(bytes + alignment), 0) + alignment;
    } else {
        char *start = kept_buffer(mmap(NULL, pages + 2 * page, PROT_READ | PROT_WRITE,
                                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), pages + 2 * page);
        mprotect(start, page, PROT_NONE);
        mprotect(start + page + pages, page, PROT_NONE);
        buffer = way == 1 ? start + page : start + page + (pages - bytes) / alignment * alignment;
    }
    for (size_t i = 0; i < bytes; i++)
        buffer[i] = (char)random_bits();
    return buffer;
}

static void free_all(void)
{
    while (n_buffers) {
        n_buffers--;
        if (buffers[n_buffers].mapped)
            munmap(buffers[n_buffers].start, buffers[n_buffers].mapped);
        else
            free(buffers[n_buffers].start);
    }
}

#endif
