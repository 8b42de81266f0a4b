/* attn_node/borrow_state.h - what borrow.c and borrow_calls.c share, and nobody else. */
#pragma once

#include "attn_node/borrow.h"
#include "engine/forward.h"
#include "rpc/channel.h"

enum { MAX_LENDERS = KV_MAX_PLACES - 1 };
enum lender_state { LENDER_SHUT, LENDER_OPENING, LENDER_OPEN };

/* A lane's rows at a lender. */
struct lender_lane {
    struct wire_context_counts counts;
    int32_t *n_blocks; /* [max_rows]: of the part that each choosing row comes by in */
};

/* The answer that is waited for, and where it goes. */
struct awaited {
    uint64_t call_id; /* 0: none; what else comes is of a step that has failed elsewhere */
    bool is_there;
    int lane;
    struct context_candidate *candidates; /* of Choose */
    const struct context_rows *rows;      /* of Attend: its state and o */
};

struct lender {
    struct borrow *owner;
    struct wire_table_context who;
    struct channel *channel; /* NULL: the endpoint is unusable */
    enum lender_state state;
    bool is_closing, is_told_refused;
    int64_t open_ns; /* not before */
    uint64_t session;
    uint32_t n_pages;
    int place; /* 0: none */
    struct lender_lane lanes[FORWARD_LANES];
    struct awaited awaited;
};

struct borrow {
    struct borrow_options options;
    char *name;
    struct wire_context_model model;
    struct lender *lenders[MAX_LENDERS];
    int n_lenders;
    bool has_news, is_lost;
    struct wire_table_context wanted[MAX_LENDERS];
    int n_wanted;

    /* The step in progress. */
    uint64_t step, trace_id;
    int64_t deadline_ns;
    struct err error;
    struct buf message;
    struct wire_context_part *parts;   /* [max_seqs] */
    struct wire_context_group *groups; /* [max_rows] */
};

/* What it holds is of no use any more. */
void borrow_lose(struct borrow *b, struct lender *l, int code, const char *why);
