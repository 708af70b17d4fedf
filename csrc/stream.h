/* SPDX-License-Identifier: Apache-2.0
 *
 * A stream of frames that survives its connection: what the other side has not acknowledged is kept and sent again over the
 * next one, and what comes twice is dropped here. It knows bytes and sequence numbers, and nothing of what frames mean. */
#ifndef FBX_STREAM_H
#define FBX_STREAM_H
#include "wire.h"

#include <stddef.h>

#define FBXI_BROKEN (-32) /* of these functions only: the connection is gone */
#define FBXI_GARBAGE (-33) /* of these functions only: what came is no stream of frames */

struct fbxi_stream {
    int fd; /* -1 while there is no connection */
    /* sending: a ring of bytes; [head, sent) is on its way, [sent, tail) waits */
    uint8_t *tx;
    uint64_t tx_bytes, head, sent, tail;
    uint64_t acks_end; /* tail, while [head, tail) is nothing but acknowledgements: those are not kept once sent */
    uint64_t sequence; /* last given out */
    /* receiving */
    uint8_t *rx;
    uint32_t rx_bytes, rx_at, rx_end;
    uint64_t received; /* last sequence taken */
    uint64_t acknowledged; /* what we have told of it */
    uint64_t unacknowledged_bytes;
    /* a payload that is read to where it belongs instead of through rx */
    uint8_t *direct;
    uint32_t direct_left;
    uint32_t sip; /* read only so much past what is read to its place, so that the next payload can go to its own */
    uint32_t drained; /* the last read took all that was there */
    uint64_t bytes_in, bytes_out, sent_again;
};

int fbxi_stream_init(struct fbxi_stream *s, uint64_t tx_bytes, uint32_t rx_bytes); /* powers of two; 0 or -1 */
void fbxi_stream_free(struct fbxi_stream *s);
/* Whether a frame with that payload can be put now. */
int fbxi_stream_room(const struct fbxi_stream *s, uint32_t payload);
/* Put a frame: numbered unless it is an ACK. Room must have been asked for. A payload that was filled in at place() stays. */
void fbxi_stream_put(struct fbxi_stream *s, struct fbxw_frame *f, const void *payload);
/* Where the payload of the frame that is put next will lie; NULL if it would not lie in one piece. */
uint8_t *fbxi_stream_place(struct fbxi_stream *s, uint32_t payload);
/* Send what waits, as far as the socket takes it: 0, 1 if something still waits, or BROKEN. */
int fbxi_stream_push(struct fbxi_stream *s);
/* Read what is there: the number of bytes, 0 if nothing is there now, or BROKEN. */
int fbxi_stream_fill(struct fbxi_stream *s, int wait); /* wait: as long as the socket's own timeout says */
/* The next whole frame: 1 (payload points into the buffer until fbxi_stream_took()), 0 none, or GARBAGE. Repeated frames are
 * skipped. 2: the header of one whose payload is not all here, but `available` bytes of it are: see fbxi_stream_direct(). */
int fbxi_stream_next(struct fbxi_stream *s, struct fbxw_frame *f, const uint8_t **payload, uint32_t *available);
void fbxi_stream_took(struct fbxi_stream *s, const struct fbxw_frame *f);
/* Read the rest of the frame that next() gave as 2 to `to`, which has room for its payload; took() when direct_left is 0. */
void fbxi_stream_direct(struct fbxi_stream *s, const struct fbxw_frame *f, uint8_t *to, uint32_t available);
/* The other side has taken everything up to `ack`; 0, or GARBAGE for what was never sent. */
int fbxi_stream_acked(struct fbxi_stream *s, uint64_t ack);
/* Go on over a new connection; the other side has taken everything up to `received`. 0, or GARBAGE. */
int fbxi_stream_resume(struct fbxi_stream *s, int fd, uint64_t received);
void fbxi_stream_drop(struct fbxi_stream *s); /* the connection, not the stream */
static inline int fbxi_stream_waiting(const struct fbxi_stream *s) { return s->sent != s->tail; }
static inline int fbxi_stream_settled(const struct fbxi_stream *s) { return s->head == s->tail; }
#endif
