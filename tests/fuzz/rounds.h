/* What every fuzzer's main does:
 *
 *     fuzzer SEED ROUNDS SECONDS
 *
 * does rounds with the seeds SEED, SEED + 1, ... until there were ROUNDS or SECONDS have passed. `make fuzz` builds
 * fuzzers with AddressSanitizer and UndefinedBehaviorSanitizer. A failure names the seed of its round.
 */
#ifndef MPISTREAM_ROUNDS_H
#define MPISTREAM_ROUNDS_H

#include <signal.h>
#include <time.h>

#include "guarded_memory.h"

static uint64_t seed;

/* The sanitizers end the program by SIGABRT, so that the seed is named whatever was found. */
const char *__asan_default_options(void) { return "abort_on_error=1:detect_leaks=0"; }
const char *__ubsan_default_options(void) { return "abort_on_error=1:print_stacktrace=1"; }

static void name_the_seed(int signal_number)
{
    fprintf(stderr, "in the round with seed %llu: repeat it with the arguments %llu 1 600\n", (unsigned long long)seed,
            (unsigned long long)seed);
    _exit(128 + signal_number);
}

static uint64_t do_rounds(int argc, char **argv, void (*do_round)(void))
{
    if (argc != 4) {
        fprintf(stderr, "usage: %s SEED ROUNDS SECONDS\n", argv[0]);
        exit(2);
    }
    uint64_t first = strtoull(argv[1], NULL, 10), rounds = strtoull(argv[2], NULL, 10);
    time_t end = time(NULL) + atoi(argv[3]);

    signal(SIGABRT, name_the_seed);
    for (seed = first; seed < first + rounds && time(NULL) < end; seed++) {
        random_state = seed;
        do_round();
        free_all();
    }
    return seed - first;
}

#endif
