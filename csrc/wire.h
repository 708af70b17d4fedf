/* SPDX-License-Identifier: Apache-2.0
 *
 * The bytes that machines of one fabric send each other: frames of a 64-byte header and up to 64 KiB behind it, little-endian
 * whatever the processor is. Nothing here has state. Whoever decodes a frame gets numbers, not trust: each use bounds what it
 * uses as an index, an offset or a length.
 */
#ifndef FBX_WIRE_H
#define FBX_WIRE_H

#include <endian.h>
#include <stdint.h>
#include <string.h>

#define FBXW_VERSION 1u
#define FBXW_HEADER 64u
#define FBXW_PAYLOAD 65536u /* most that one frame carries */
#define FBXW_FRAME (FBXW_HEADER + FBXW_PAYLOAD)

enum fbxw_kind {
    /* opening and closing; not sequenced, except BYE */
    FBXW_HELLO = 1, /* requester -> gateway, first: payload struct fbxw_hello */
    FBXW_WELCOME, /* back: value: last sequence that was taken; status */
    FBXW_ACK, /* only its acknowledgement counts */
    FBXW_BYE, /* nothing comes after it */
    /* requests. Posted: */
    FBXW_STORE = 16, /* value, or payload if length > 8 */
    FBXW_WRITE, /* payload */
    FBXW_REGISTER, /* what: FBXL_ENTRY_*; address: register; value; length; aux: target node */
    /* non-posted: */
    FBXW_LOAD = 32,
    FBXW_READ,
    FBXW_FETCH_ADD, /* value */
    FBXW_SWAP, /* value */
    FBXW_CAS, /* payload: expected and desired, 16 bytes each */
    FBXW_FLUSH, /* aux: target node */
    FBXW_SAMPLE, /* what: FBXW_SAMPLE_*; address: index; aux: target node */
    FBXW_ERRAND, /* what: enum fbxw_errand; payload is its own */
    /* answers: ticket and status as asked; ahead_ps: modelled time since the request reached the machine */
    FBXW_DONE = 64, /* value; payload of up to 64 bytes, then marks */
    FBXW_DATA, /* payload: the bytes of a READ or of a wide LOAD */
    FBXW_NOTE, /* beside answers: what: FBXW_NOTE_* */
};
enum { FBXW_SAMPLE_DOORBELL, FBXW_SAMPLE_MASK, FBXW_SAMPLE_SPAD };
enum { FBXW_NOTE_MESSAGES = 1, /* value: messages of ours that found their register full */
       FBXW_NOTE_MARKS }; /* payload: marks of the answer with this ticket, which follows */

/* What is asked of a machine beside its memory. */
enum fbxw_errand { FBXW_PING = 1, FBXW_PUT, FBXW_GET, FBXW_FIND, FBXW_NAME, FBXW_UNNAME, FBXW_ALLOC, FBXW_FREE, FBXW_CHECK,
                   FBXW_BARRIER, FBXW_LEAVE, FBXW_WINDOW_INFO, FBXW_ERRANDS };

#define FBXW_PATH_SHIFT 4u /* attr: FBX_RO, FBX_IDO; the path above */

struct fbxw_frame { /* decoded */
    uint8_t kind, attr, tc;
    uint16_t what;
    uint32_t payload; /* bytes behind the header */
    uint64_t sequence; /* 1, 2, 3 … per direction of a session; 0: not sequenced */
    uint64_t ack; /* highest sequence of the other direction that was taken */
    uint32_t ticket, aux;
    uint64_t address;
    int64_t ahead_ps; /* request: how far in the future it reaches the crossing, as modelled, when it is sent */
    uint64_t value;
    uint32_t length;
    int32_t status;
};

struct fbxw_hello { /* payload of HELLO, packed as below */
    uint8_t session[16];
    uint64_t fabric; /* the same on all machines of a fabric */
    uint32_t machine, node; /* whose; node ~0: the process itself, for errands */
    uint32_t requester, incarnation;
    uint64_t received; /* last sequence of the answers that was taken */
    uint32_t resumed; /* it has been here before */
    uint32_t layout; /* wire version of the sender's build */
    uint64_t posted; /* posted writes of the requester to this machine before this session, for marks */
};
#define FBXW_HELLO_BYTES 64u

struct fbxw_mark { /* posted writes that left before the answer and must be there before it counts */
    uint32_t requester, incarnation;
    uint64_t posted;
};
#define FBXW_MARK_BYTES 16u
#define FBXW_MARKS 32u /* in one frame; what is more goes before the answer, in notes of as many */
#define FBXW_MARKS_MOST 65536u /* of one answer: there are no more requesters on a machine */
#define FBXW_NOTE_BYTES (FBXW_HEADER + FBXW_MARKS * FBXW_MARK_BYTES)

static inline void fbxw_put16(uint8_t *at, uint16_t v) { v = htole16(v), memcpy(at, &v, 2); }
static inline void fbxw_put32(uint8_t *at, uint32_t v) { v = htole32(v), memcpy(at, &v, 4); }
static inline void fbxw_put64(uint8_t *at, uint64_t v) { v = htole64(v), memcpy(at, &v, 8); }
static inline uint16_t fbxw_get16(const uint8_t *at) { uint16_t v; memcpy(&v, at, 2); return le16toh(v); }
static inline uint32_t fbxw_get32(const uint8_t *at) { uint32_t v; memcpy(&v, at, 4); return le32toh(v); }
static inline uint64_t fbxw_get64(const uint8_t *at) { uint64_t v; memcpy(&v, at, 8); return le64toh(v); }

static inline void fbxw_encode(uint8_t at[FBXW_HEADER], const struct fbxw_frame *f)
{
    at[0] = 'F';
    at[1] = 'X';
    at[2] = FBXW_VERSION;
    at[3] = f->kind;
    fbxw_put32(at + 4, f->payload);
    fbxw_put64(at + 8, f->sequence);
    fbxw_put64(at + 16, f->ack);
    fbxw_put32(at + 24, f->ticket);
    at[28] = f->attr;
    at[29] = f->tc;
    fbxw_put16(at + 30, f->what);
    fbxw_put64(at + 32, f->address);
    fbxw_put64(at + 40, (uint64_t)f->ahead_ps);
    fbxw_put64(at + 48, f->value);
    /* `aux` shares the word of `status`: requests have the one, answers the other. */
    fbxw_put32(at + 56, f->length);
    fbxw_put32(at + 60, f->kind >= FBXW_DONE || f->kind == FBXW_WELCOME ? (uint32_t)f->status : f->aux);
}

/* 0, or -1 if these bytes begin no frame of this version. */
static inline int fbxw_decode(const uint8_t at[FBXW_HEADER], struct fbxw_frame *f)
{
    if (at[0] != 'F' || at[1] != 'X' || at[2] != FBXW_VERSION)
        return -1;
    f->kind = at[3];
    f->payload = fbxw_get32(at + 4);
    f->sequence = fbxw_get64(at + 8);
    f->ack = fbxw_get64(at + 16);
    f->ticket = fbxw_get32(at + 24);
    f->attr = at[28];
    f->tc = at[29];
    f->what = fbxw_get16(at + 30);
    f->address = fbxw_get64(at + 32);
    f->ahead_ps = (int64_t)fbxw_get64(at + 40);
    f->value = fbxw_get64(at + 48);
    f->length = fbxw_get32(at + 56);
    f->aux = fbxw_get32(at + 60);
    f->status = (int32_t)f->aux;
    return f->payload > FBXW_PAYLOAD ? -1 : 0;
}

static inline void fbxw_encode_hello(uint8_t at[FBXW_HELLO_BYTES], const struct fbxw_hello *h)
{
    memcpy(at, h->session, 16);
    fbxw_put64(at + 16, h->fabric);
    fbxw_put32(at + 24, h->machine);
    fbxw_put32(at + 28, h->node);
    fbxw_put32(at + 32, h->requester);
    fbxw_put32(at + 36, h->incarnation);
    fbxw_put64(at + 40, h->received);
    fbxw_put32(at + 48, h->resumed);
    fbxw_put32(at + 52, h->layout);
    fbxw_put64(at + 56, h->posted);
}

static inline void fbxw_decode_hello(const uint8_t at[FBXW_HELLO_BYTES], struct fbxw_hello *h)
{
    memcpy(h->session, at, 16);
    h->fabric = fbxw_get64(at + 16);
    h->machine = fbxw_get32(at + 24);
    h->node = fbxw_get32(at + 28);
    h->requester = fbxw_get32(at + 32);
    h->incarnation = fbxw_get32(at + 36);
    h->received = fbxw_get64(at + 40);
    h->resumed = fbxw_get32(at + 48);
    h->layout = fbxw_get32(at + 52);
    h->posted = fbxw_get64(at + 56);
}

/* Most that the answer to a request takes, marks included. Who asks keeps what is owed to him below FBXW_OWED: since each
 * request acknowledges all that came before it, the answering side's ring of twice that can never fill up. */
#define FBXW_OWED (512u << 10)
static inline uint32_t fbxw_answer_bytes(const struct fbxw_frame *f)
{
    const uint32_t payload = f->kind == FBXW_ERRAND && f->what != FBXW_PING ? FBXW_PAYLOAD
                             : f->kind != FBXW_READ                         ? 64
                             : f->length < FBXW_PAYLOAD                     ? f->length
                                                                            : FBXW_PAYLOAD;
    return 2 * FBXW_HEADER + FBXW_MARKS * FBXW_MARK_BYTES + payload;
}

static inline int fbxw_posted(uint8_t kind) { return kind >= FBXW_STORE && kind <= FBXW_REGISTER; }

#endif
