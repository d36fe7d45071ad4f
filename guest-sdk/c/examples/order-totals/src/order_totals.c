/* What each customer ordered, in all and per day, and who ordered most.
 *
 * Events come under orders.<customer>.<type>. An order is placed with its total; it may be paid and
 * shipped; it may be cancelled, or returned in part. The same module in Rust is in
 * examples/order-totals; both store the same bytes. */
#include "foldstream.h"

typedef struct {
    fs_text order;
    uint64_t total_cents;
} placed_data;
FS_RECORD(placed_type, placed_data, FS_FIELD(placed_data, order), FS_FIELD(placed_data, total_cents));

/* Of most events only the order matters here; what else they carry is ignored. */
typedef struct {
    fs_text order;
} of_order;
FS_RECORD(of_order_type, of_order, FS_FIELD(of_order, order));

typedef struct {
    fs_text order;
    uint64_t refund_cents;
} returned_data;
FS_RECORD(returned_type, returned_data, FS_FIELD(returned_data, order),
          FS_FIELD(returned_data, refund_cents));

/* What is kept of a customer, and of each day of a customer. */
typedef struct {
    /* Orders placed and not cancelled; their worth, less what was returned. */
    uint64_t orders, total_cents;
    /* What was paid, whatever came later. */
    uint64_t paid_cents;
    /* Orders shipped. */
    uint64_t shipped;
} totals;
FS_RECORD(totals_type, totals, FS_FIELD(totals, orders), FS_FIELD(totals, total_cents),
          FS_FIELD(totals, paid_cents), FS_FIELD(totals, shipped));

/* What is kept of an order, as later events do not repeat it. */
typedef struct {
    fs_date day;
    uint64_t total_cents;
} order;
FS_RECORD(order_type, order, FS_FIELD(order, day), FS_FIELD(order, total_cents));

/* order/<customer>/<order> */
static fs_table orders = FS_TABLE("order", order_type, FS_STRING, FS_STRING);
/* customer/<customer> */
static fs_table customers = FS_TABLE("customer", totals_type, FS_STRING);
/* day/<customer>/<day>, by the day on which the order was placed */
static fs_table days = FS_TABLE("day", totals_type, FS_STRING, FS_DATE);
/* rank/<total>/<customer>: the keys are the ranking, from the smallest total up */
static fs_table ranking = FS_TABLE("rank", fs_null, FS_U64, FS_STRING);

static uint64_t less(uint64_t number, uint64_t by) { return number < by ? 0 : number - by; }

/* What an event changes, in both totals of a customer. */
typedef struct {
    uint64_t orders, total_cents, paid_cents, shipped, fewer_orders, fewer_cents;
} change;

static void apply_change(totals *to, const change *change) {
    to->orders = less(to->orders + change->orders, change->fewer_orders);
    to->total_cents = less(to->total_cents + change->total_cents, change->fewer_cents);
    to->paid_cents += change->paid_cents;
    to->shipped += change->shipped;
}

/* Changes the totals of a customer and of the order's day, and moves the customer in the ranking. */
static void change_totals(fs_text customer, fs_date day, change change) {
    apply_change(fs_edit(&days, FS_KEY(customer, day)), &change);
    totals *all = fs_edit(&customers, FS_KEY(customer));
    uint64_t before = all->total_cents;
    apply_change(all, &change);
    if (all->total_cents != before) {
        fs_delete(&ranking, FS_KEY(before, customer));
        fs_set(&ranking, FS_KEY(all->total_cents, customer), NULL);
    }
}

/* An order that was placed before; NULL if it was not. */
static const order *find(fs_text customer, fs_text name) {
    const order *found = fs_get(&orders, FS_KEY(customer, name));
    if (found == NULL) {
        /* Cancelled before, or the stream was cut behind it: there is nothing to count. */
        fs_log(FS_WARN, "customer %.*s has no order %.*s", (int)customer.length, customer.at,
               (int)name.length, name.at);
    }
    return found;
}

static fs_status placed(const fs_event *event, const void *data) {
    const placed_data *placed = data;
    fs_text customer = fs_token(event, 2);
    order kept = {fs_date_of(event->time), placed->total_cents};
    fs_set(&orders, FS_KEY(customer, placed->order), &kept);
    change_totals(customer, kept.day, (change){.orders = 1, .total_cents = placed->total_cents});
    return FS_OK;
}

static fs_status paid(const fs_event *event, const void *data) {
    const of_order *paid = data;
    const order *of = find(fs_token(event, 2), paid->order);
    if (of != NULL) {
        change_totals(fs_token(event, 2), of->day, (change){.paid_cents = of->total_cents});
    }
    return FS_OK;
}

static fs_status shipped(const fs_event *event, const void *data) {
    const of_order *shipped = data;
    const order *of = find(fs_token(event, 2), shipped->order);
    if (of != NULL) {
        change_totals(fs_token(event, 2), of->day, (change){.shipped = 1});
    }
    return FS_OK;
}

static fs_status cancelled(const fs_event *event, const void *data) {
    const of_order *cancelled = data;
    fs_text customer = fs_token(event, 2);
    const order *of = find(customer, cancelled->order);
    if (of != NULL) {
        change_totals(customer, of->day, (change){.fewer_orders = 1, .fewer_cents = of->total_cents});
        /* Whatever comes later of this order is not counted. */
        fs_delete(&orders, FS_KEY(customer, cancelled->order));
    }
    return FS_OK;
}

static fs_status returned(const fs_event *event, const void *data) {
    const returned_data *returned = data;
    const order *of = find(fs_token(event, 2), returned->order);
    if (of != NULL) {
        change_totals(fs_token(event, 2), of->day, (change){.fewer_cents = returned->refund_cents});
    }
    return FS_OK;
}

typedef struct {
    fs_text customer;
} customer_arguments;
FS_RECORD(customer_type, customer_arguments, FS_FIELD(customer_arguments, customer));

static fs_status customer(const void *arguments, fs_answer *answer) {
    const customer_arguments *asked = arguments;
    const totals *found = fs_get(&customers, FS_KEY(asked->customer));
    if (found == NULL) {
        return FS_NOT_FOUND;
    }
    fs_answer_value(answer, &totals_type, found);
    return FS_OK;
}

typedef struct {
    fs_text customer;
    fs_date from, to;
} days_arguments;
FS_RECORD(days_type, days_arguments, FS_FIELD(days_arguments, customer),
          FS_FIELD(days_arguments, from), FS_FIELD(days_arguments, to));

static fs_status days_of_customer(const void *arguments, fs_answer *answer) {
    const days_arguments *asked = arguments;
    fs_key from = FS_KEY(asked->customer, asked->from), through = FS_KEY(asked->customer, asked->to);
    fs_scan scan = fs_scan_begin(&days, (fs_range){.from = &from, .through = &through});
    fs_answer_list(answer);
    while (fs_next(&scan)) {
        fs_date day = {(int32_t)scan.key.parts[1].number};
        fs_answer_list(answer);
        fs_answer_value(answer, &fs_day, &day);
        fs_answer_value(answer, &totals_type, scan.value);
        fs_answer_end(answer);
    }
    fs_answer_end(answer);
    return FS_OK;
}

typedef struct {
    uint64_t limit;
} top_arguments;
FS_RECORD(top_type, top_arguments, FS_OPTIONAL(top_arguments, limit));

typedef struct {
    fs_text customer;
    uint64_t total_cents;
} ranked;
FS_RECORD(ranked_type, ranked, FS_FIELD(ranked, customer), FS_FIELD(ranked, total_cents));

static fs_status top_customers(const void *arguments, fs_answer *answer) {
    const top_arguments *asked = arguments;
    uint64_t left = asked->limit < 100 ? asked->limit : 100;
    fs_scan scan = fs_scan_begin(&ranking, (fs_range){.backwards = true, .limit = left});
    fs_answer_list(answer);
    for (; left > 0 && fs_next(&scan); left--) {
        ranked one = {scan.key.parts[1].text, scan.key.parts[0].number};
        fs_answer_value(answer, &ranked_type, &one);
    }
    fs_answer_end(answer);
    return FS_OK;
}

const fs_projection foldstream_projection = {
    .name = "order-totals",
    .description = "What each customer ordered, in all and per day, and who ordered most",
    .subjects = (const char *const[]){"orders.>", NULL},
    .key = {.rule = FS_SUBJECT_TOKEN, .token = 2},
    .tables = (fs_table *const[]){&orders, &customers, &days, &ranking, NULL},
    .handlers =
        (const fs_handler[]){
            {"placed", placed, &placed_type},
            {"paid", paid, &of_order_type},
            {"shipped", shipped, &of_order_type},
            {"cancelled", cancelled, &of_order_type},
            {"returned", returned, &returned_type},
            {0},
        },
    .queries =
        (const fs_query[]){
            {"customer", "The totals of a customer: {\"customer\": \"ada\"}", customer,
             &customer_type, NULL},
            {"days",
             "A customer's totals per day: {\"customer\": \"ada\", \"from\": \"2026-10-01\", "
             "\"to\": \"2026-10-30\"}",
             days_of_customer, &days_type, NULL},
            {"top-customers", "Who ordered most: {\"limit\": 3}", top_customers, &top_type,
             &(const top_arguments){.limit = 10}},
            {0},
        },
};
