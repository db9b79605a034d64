/* The camera's pixels, as all kernels read them: little-endian uint16 at any alignment. */
#ifndef MPISTREAM_PIXELS_H
#define MPISTREAM_PIXELS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the camera's pixels are little-endian; this machine is not"
#endif

typedef uint16_t pixel __attribute__((aligned(1), may_alias));

#endif
