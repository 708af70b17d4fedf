/* SPDX-License-Identifier: Apache-2.0
 *
 * How long to look at a socket before sleeping on it. Being woken takes longer than most answers do, but where processors are scarce
 * looking on keeps the other side from running: so as long as it has been of use. Both sides of a connection do it (socket.c,
 * gateway.c). It reads no clock. */
#ifndef FBX_LOOKING_H
#define FBX_LOOKING_H
#include <stdint.h>

#define FBXI_LOOK_MOST_NS 50000u
#define FBXI_LOOK_LEAST_NS 500u /* as good as not at all */
#define FBXI_LOOK_AWAY_NS 10000u /* between two looks: the processor was taken away meanwhile */
#define FBXI_LOOK_FRESH_NS 10000000u /* nothing came in so long: what was learned before says little now */
#define FBXI_LOOK_TRY 64u /* after so many sleeps one looks on in any case, to learn whether that would be of use; */
#define FBXI_LOOK_TRY_MOST 256u /* after twice as many each time that it was not */

struct fbxi_looking {
    uint32_t ns; /* how long */
    uint32_t sleeps, try_after;
};

/* Nothing is known: try it. */
static inline void fbxi_looking_fresh(struct fbxi_looking *l)
{
    l->ns = FBXI_LOOK_MOST_NS / 2;
    l->try_after = FBXI_LOOK_TRY;
}

/* Something came while we looked on. */
static inline void fbxi_looking_useful(struct fbxi_looking *l)
{
    l->ns = l->ns * 2 < FBXI_LOOK_MOST_NS ? l->ns * 2 : FBXI_LOOK_MOST_NS;
    l->try_after = FBXI_LOOK_TRY;
}

static inline void fbxi_looking_useless(struct fbxi_looking *l)
{
    l->ns = l->ns / 2 > FBXI_LOOK_LEAST_NS ? l->ns / 2 : FBXI_LOOK_LEAST_NS;
}

/* We go to sleep. Returns whether it is time for a try. */
static inline int fbxi_looking_sleeps(struct fbxi_looking *l)
{
    if (++l->sleeps < l->try_after)
        return 0;
    l->sleeps = 0;
    l->try_after = l->try_after * 2 < FBXI_LOOK_TRY_MOST ? l->try_after * 2 : FBXI_LOOK_TRY_MOST;
    l->ns = FBXI_LOOK_MOST_NS / 2;
    return 1;
}
#endif
