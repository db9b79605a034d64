/* Electron counting as its definition reads (docs/counting.md), in plain C: what the kernel is compared with. It shares
 * nothing with the kernel but `struct counting`.
 */
#ifndef MPISTREAM_SLOW_COUNTING_H
#define MPISTREAM_SLOW_COUNTING_H

#include <math.h>
#include <stdlib.h>

#include "electron_counting.h"

enum { MOST_PIXELS = 1 << 16 };

/* One frame: its raw pixels, which of them came, which are masked, and their values after all corrections. */
struct slow_frame {
    uint16_t raw[MOST_PIXELS];
    int came[MOST_PIXELS];
    int good[MOST_PIXELS];
    float value[MOST_PIXELS];
};

static int by_value(const void *a, const void *b) { return *(const uint16_t *)a - *(const uint16_t *)b; }

static float slow_factor(const struct slow_frame *frame, const struct counting *plan, int row, int half)
{
    static uint16_t there[MOST_PIXELS];
    int first = half ? plan->columns / 2 : 0, end = half ? plan->columns : plan->columns / 2, n = 0;
    uint64_t sum = 0;
    float statistic;

    for (int i = row * plan->columns + first; i < row * plan->columns + end; i++)
        if (frame->came[i] && frame->good[i]) {
            there[n++] = frame->raw[i];
            sum += frame->raw[i];
        }
    if (n == 0)
        return 0;
    qsort(there, (size_t)n, sizeof there[0], by_value);
    if (plan->row_dark == ROW_DARK_MEAN)
        statistic = (float)((double)sum / n);
    else
        statistic = (float)((there[(n - 1) / 2] + there[n / 2]) / 2.0);
    return statistic == 0 ? 0 : plan->row_dark_level / statistic;
}

/* Fills in `value`; all else of `frame` is given. */
static void slow_correct(struct slow_frame *frame, const struct counting *plan)
{
    for (int row = 0; row < plan->rows; row++) {
        float factors[2];
        for (int half = 0; half < 2 && plan->row_dark; half++)
            factors[half] = slow_factor(frame, plan, row, half);
        for (int column = 0; column < plan->columns; column++) {
            int i = row * plan->columns + column;
            float value = (float)frame->raw[i];
            if (plan->dark)
                value = value - plan->dark[i];
            if (plan->row_dark)
                value = value * factors[column >= plan->columns / 2];
            if (plan->inverse_gain)
                value = value * plan->inverse_gain[i];
            frame->value[i] = frame->came[i] ? value : 0;
        }
    }
}

static int slow_kept(const struct slow_frame *frame, const struct counting *plan, int i)
{
    return frame->value[i] > plan->background && frame->value[i] < plan->xray;
}

/* The pixel at (row, column), -1 beyond the frame. */
static int pixel_at(const struct counting *plan, int row, int column)
{
    int inside = row >= 0 && row < plan->rows && column >= 0 && column < plan->columns;
    return inside ? row * plan->columns + column : -1;
}

static int slow_is_electron(const struct slow_frame *frame, const struct counting *plan, int row, int column)
{
    int here = pixel_at(plan, row, column), neighbours = 0;
    float value = slow_kept(frame, plan, here) ? frame->value[here] : 0;

    if (!frame->good[here])
        return 0;
    for (int r = row - 1; r <= row + 1; r++)
        for (int c = column - 1; c <= column + 1; c++) {
            int i = pixel_at(plan, r, c);
            if (i < 0 || i == here || !frame->good[i])
                continue;
            neighbours++;
            if (!(value > (slow_kept(frame, plan, i) ? frame->value[i] : 0)))
                return 0;
        }
    return neighbours || slow_kept(frame, plan, here);
}

static int slow_carries_charge(const struct slow_frame *frame, const struct counting *plan, int i)
{
    return i >= 0 && frame->came[i] && frame->good[i] && frame->value[i] < plan->xray;
}

static void slow_centroid(const struct slow_frame *frame, const struct counting *plan, int row, int column,
                          int8_t offset[2])
{
    int here = pixel_at(plan, row, column);
    int usable = slow_carries_charge(frame, plan, here) && slow_kept(frame, plan, here);
    double lowest = INFINITY;

    for (int r = row - 1; r <= row + 1; r++)
        for (int c = column - 1; c <= column + 1; c++) {
            int i = pixel_at(plan, r, c);
            if (slow_carries_charge(frame, plan, i) && frame->value[i] < lowest)
                lowest = frame->value[i];
        }
    for (int axis = 0; axis < 2; axis++) {
        double charge[3], sum;
        for (int step = -1; step <= 1; step++) {
            int i = pixel_at(plan, row + (axis == 0) * step, column + (axis == 1) * step);
            charge[step + 1] = slow_carries_charge(frame, plan, i) ? frame->value[i] - lowest : 0;
        }
        sum = charge[0] + charge[1] + charge[2];
        offset[axis] = 0;
        if (usable && sum > 0 && sum < INFINITY)
            offset[axis] = (int8_t)rint((charge[2] - charge[0]) / sum * 128);
    }
}

#endif
