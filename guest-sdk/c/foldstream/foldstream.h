/* Foldstream SDK for C: write a projection, test it with an ordinary program, build one .wasm file.
 *
 * A module defines `foldstream_projection`: its manifest, its tables, and functions for events and
 * queries. C11; nothing but the C library.
 *
 * Errors. A function for an event returns FS_OK, or what fs_reject or fs_retry returns. Reading can
 * fail too: a subject has no such token, a key is too long, a stored value does not match its type.
 * Such a call returns something harmless and remembers the error; the event is then rejected,
 * whatever its function returns.
 *
 * Memory. What an event, a key or a value refers to lives until the batch ends. Nothing is freed by
 * hand. The result may depend on the events only, so keep everything in tables: the host may replace
 * an instance between any two batches. */
#ifndef FOLDSTREAM_H
#define FOLDSTREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A text in UTF-8, without a zero at its end. */
typedef struct {
    const char *at;
    size_t length;
} fs_text;
/* A day in UTC, in days since 1970-01-01, up to 9999-12-31. In JSON and keys 2026-11-23. */
typedef struct {
    int32_t days;
} fs_date;
/* An instant, in nanoseconds since 1970-01-01T00:00:00Z. In JSON and keys RFC 3339, with nine
 * decimals. */
typedef struct {
    uint64_t nanoseconds;
} fs_time;

/* The text of a literal. */
#define FS_TEXT(literal) ((fs_text){(literal), sizeof(literal) - 1})
/* The text of a string with a zero at its end. */
fs_text fs_text_of(const char *string);
bool fs_text_equal(fs_text one, fs_text other);
/* The day of an instant. */
fs_date fs_date_of(fs_time time);

/* ---- Types of events, values, arguments and answers. ---- */

typedef enum {
    FS_NO_KIND,
    FS_BOOL,
    FS_U8,
    FS_U16,
    FS_U32,
    FS_U64,
    FS_I8,
    FS_I16,
    FS_I32,
    FS_I64,
    FS_F64,
    FS_STRING,
    FS_DATE,
    FS_TIME,
    FS_RECORD_KIND,
    FS_NULL,
} fs_kind;

typedef struct fs_type fs_type;

/* A field of a record. */
typedef struct {
    const char *name;
    size_t offset;
    const fs_type *type;
    /* Whether JSON may lack it, or have null: it then keeps what it begins with. */
    bool optional;
} fs_field;

struct fs_type {
    fs_kind kind;
    size_t size;
    const fs_field *fields;
    size_t count;
};

extern const fs_type fs_bool, fs_u8, fs_u16, fs_u32, fs_u64, fs_i8, fs_i16, fs_i32, fs_i64, fs_f64;
extern const fs_type fs_string, fs_day, fs_instant;
/* No value: null. For tables whose keys say all. */
extern const fs_type fs_null;

#define FS_TYPE_OF(value)                                                                           \
    _Generic((value), bool: &fs_bool, uint8_t: &fs_u8, uint16_t: &fs_u16, uint32_t: &fs_u32,         \
        uint64_t: &fs_u64, int8_t: &fs_i8, int16_t: &fs_i16, int32_t: &fs_i32, int64_t: &fs_i64,     \
        double: &fs_f64, fs_text: &fs_string, fs_date: &fs_day, fs_time: &fs_instant)
/* A field of a struct, under its own name. JSON must have it. */
#define FS_FIELD(struct_type, member)                                                               \
    {#member, offsetof(struct_type, member), FS_TYPE_OF(((struct_type *)0)->member), false}
/* The same, if JSON may lack it. */
#define FS_OPTIONAL(struct_type, member)                                                            \
    {#member, offsetof(struct_type, member), FS_TYPE_OF(((struct_type *)0)->member), true}
/* A field that is a record itself. */
#define FS_INNER(struct_type, member, type)                                                         \
    {#member, offsetof(struct_type, member), &(type), false}
/* Defines the type of a struct: FS_RECORD(totals_type, totals, FS_FIELD(totals, orders)); its fields
 * are written in this order, and each in the form that all SDKs write. */
#define FS_RECORD(name, struct_type, ...)                                                           \
    static const fs_field name##_fields[] = {__VA_ARGS__};                                          \
    static const fs_type name = {FS_RECORD_KIND, sizeof(struct_type), name##_fields,                \
                                 sizeof(name##_fields) / sizeof(fs_field)}

/* ---- Events. ---- */

typedef struct {
    fs_text name, value;
} fs_header;

/* An immutable fact. */
typedef struct {
    /* Its sequence in the stream, from 1. */
    uint64_t sequence;
    /* When the stream stored it. There is no other clock for a fold. */
    fs_time time;
    /* The subject under which it was published, such as orders.42.placed. */
    fs_text subject;
    /* Its type: the CloudEvents type, otherwise the Event-Type header, otherwise the last token of
     * the subject. */
    fs_text kind;
    /* Headers by lower-case name; none unless the manifest asks for them. */
    const fs_header *headers;
    size_t header_count;
    /* What happened, as text or any octets. */
    fs_text data;
} fs_event;

typedef enum { FS_OK, FS_REJECTED, FS_RETRIED, FS_NOT_FOUND, FS_INVALID } fs_status;

/* One token of the subject, counted from 1: the second of orders.42.placed is 42. */
fs_text fs_token(const fs_event *event, unsigned number);
/* Reads the data of an event as JSON of a type into a struct, or rejects the event. */
bool fs_data(const fs_event *event, const fs_type *type, void *into);
/* The event can never be applied. The message, as of printf, and the line become its failure. */
#define fs_reject(...) fs_failed(FS_REJECTED, __FILE__, __LINE__, __VA_ARGS__)
/* The event may be applied later: the host tries again, as often as the manifest says. */
#define fs_retry(...) fs_failed(FS_RETRIED, __FILE__, __LINE__, __VA_ARGS__)
/* The arguments of a query do not fit it. */
#define fs_invalid(...) fs_failed(FS_INVALID, __FILE__, __LINE__, __VA_ARGS__)
__attribute__((format(printf, 4, 5))) fs_status fs_failed(
    fs_status status, const char *file, int line, const char *format, ...);

typedef enum { FS_DEBUG, FS_INFO, FS_WARN, FS_ERROR } fs_level;
/* Writes a message, as of printf, to the host's log; in tests to standard error. */
__attribute__((format(printf, 2, 3))) void fs_log(fs_level level, const char *format, ...);

/* ---- Tables. ---- */

/* A part of a key. */
typedef struct {
    /* FS_STRING, FS_BOOL, FS_DATE, FS_TIME, FS_U64 or FS_I64. */
    fs_kind kind;
    fs_text text;
    /* Any other part, as a number. */
    uint64_t number;
} fs_part;

/* A key: at most four parts. */
typedef struct {
    fs_part parts[4];
    size_t count;
} fs_key;

static inline fs_part fs_part_text(fs_text text) { return (fs_part){FS_STRING, text, 0}; }
static inline fs_part fs_part_string(const char *text) {
    return (fs_part){FS_STRING, fs_text_of(text), 0};
}
static inline fs_part fs_part_bool(bool flag) { return (fs_part){FS_BOOL, {0}, flag}; }
static inline fs_part fs_part_date(fs_date day) {
    return (fs_part){FS_DATE, {0}, (uint64_t)(int64_t)day.days};
}
static inline fs_part fs_part_time(fs_time time) { return (fs_part){FS_TIME, {0}, time.nanoseconds}; }
static inline fs_part fs_part_unsigned(uint64_t number) { return (fs_part){FS_U64, {0}, number}; }
static inline fs_part fs_part_signed(int64_t number) {
    return (fs_part){FS_I64, {0}, (uint64_t)number};
}
#define FS_PART(value)                                                                              \
    _Generic((value), fs_text: fs_part_text, char *: fs_part_string, const char *: fs_part_string,   \
        bool: fs_part_bool, fs_date: fs_part_date, fs_time: fs_part_time, uint8_t: fs_part_unsigned, \
        uint16_t: fs_part_unsigned, uint32_t: fs_part_unsigned, uint64_t: fs_part_unsigned,          \
        default: fs_part_signed)(value)
#define FS_KEY_1(a) ((fs_key){{FS_PART(a)}, 1})
#define FS_KEY_2(a, b) ((fs_key){{FS_PART(a), FS_PART(b)}, 2})
#define FS_KEY_3(a, b, c) ((fs_key){{FS_PART(a), FS_PART(b), FS_PART(c)}, 3})
#define FS_KEY_4(a, b, c, d) ((fs_key){{FS_PART(a), FS_PART(b), FS_PART(c), FS_PART(d)}, 4})
#define FS_KEY_OF(a, b, c, d, key, ...) key
/* A key of one to four parts. */
#define FS_KEY(...) FS_KEY_OF(__VA_ARGS__, FS_KEY_4, FS_KEY_3, FS_KEY_2, FS_KEY_1, )(__VA_ARGS__)
/* The key of a table without parts, which has one value. */
#define FS_NO_KEY ((fs_key){.count = 0})

typedef struct fs_slot fs_slot;

/* A typed collection. The state stores an entry under the name and the key, as in customer/42 and
 * day/42/2026-11-23, which sort like the keys, and a value as JSON. A table keeps what it reads or
 * writes decoded, and writes changes once at the end of a batch. */
typedef struct {
    /* 1 to 64 lower-case letters, digits and hyphens. */
    const char *name;
    const fs_type *value;
    /* What its keys consist of; integers have a width. */
    fs_kind key[4];
    /* The rest is of the SDK. */
    fs_slot **slots;
    size_t capacity, count;
    fs_slot *changed;
} fs_table;

/* A table with its name, the type of its values, and the kinds of the parts of its keys:
 * static fs_table days = FS_TABLE("day", totals_type, FS_STRING, FS_DATE); */
#define FS_TABLE(name, value, ...) {(name), &(value), {__VA_ARGS__}, NULL, 0, 0, NULL}

/* The value of a key, until the event ends; NULL if there is none. */
const void *fs_get(fs_table *table, fs_key key);
/* The value of a key, to be changed in place until the event ends. If there is none, it begins as
 * zeros. Never NULL. A text that is put into it must be of the event, or of fs_copy. */
void *fs_edit(fs_table *table, fs_key key);
/* Sets the value of a key. */
void fs_set(fs_table *table, fs_key key, const void *value);
/* Removes the entry of a key; does nothing if there is none. */
void fs_delete(fs_table *table, fs_key key);
/* A copy that lives until the batch ends. */
fs_text fs_copy(fs_text text);

/* What a scan covers; all that is not set does not narrow it. */
typedef struct {
    /* Only keys that begin with these parts. */
    fs_key under;
    /* Only keys from the first, before the second, and up to the third, which belongs to it. */
    const fs_key *from, *before, *through;
    /* Continue behind this key, in the direction of the scan. */
    const fs_key *after;
    /* From the largest key down. */
    bool backwards;
    /* At most this many entries; 0 is no limit. */
    size_t limit;
} fs_range;

typedef struct {
    /* The entry, until the next call of fs_next. */
    fs_key key;
    const void *value;
    /* The rest is of the SDK. */
    fs_table *table;
    fs_text start, end, after;
    bool backwards, more, limited;
    size_t left, at, page_count;
    struct fs_entry *page;
} fs_scan;

/* Begins a scan over a table. */
fs_scan fs_scan_begin(fs_table *table, fs_range range);
/* Goes to the next entry; false behind the last. */
bool fs_next(fs_scan *scan);
/* Removes all entries that a scan would cover, and says how many. Nothing is decoded. */
size_t fs_delete_range(fs_table *table, fs_range range);

/* ---- Queries. ---- */

/* The answer to a query: JSON, written from the front. */
typedef struct fs_answer fs_answer;
/* Writes a value, as the answer or as the next element of a list. */
void fs_answer_value(fs_answer *answer, const fs_type *type, const void *value);
/* Begins and ends a list. */
void fs_answer_list(fs_answer *answer);
void fs_answer_end(fs_answer *answer);

/* ---- The projection. ---- */

/* Handles the events of one type. */
typedef struct {
    const char *kind;
    /* `data` is of the type; NULL if there is none. */
    fs_status (*handle)(const fs_event *event, const void *data);
    const fs_type *type;
} fs_handler;

/* Answers a query. */
typedef struct {
    /* Lower-case letters, digits and hyphens. */
    const char *name;
    /* For people: what it returns, and which arguments it takes. */
    const char *description;
    fs_status (*answer)(const void *arguments, fs_answer *answer);
    /* The type of its arguments; NULL if it takes none. */
    const fs_type *arguments;
    /* What they begin with; NULL is zeros. */
    const void *defaults;
} fs_query;

typedef enum { FS_NO_RULE, FS_SUBJECT, FS_SUBJECT_TOKEN, FS_HEADER, FS_DATA_POINTER } fs_key_rule;
typedef enum { FS_MESSAGE_ID, FS_HEADER_ID, FS_DATA_POINTER_ID } fs_id_rule;

/* What a module is and needs. Name, subjects and a function for events are required; what is zero
 * takes the host's setting. Lists end with NULL, or an element that is zero. */
typedef struct {
    const char *name;
    const char *description;
    /* With the wildcards * (one token) and > (the rest). */
    const char *const *subjects;
    fs_table *const *tables;
    /* By type; other events go to `apply`, or are ignored. */
    const fs_handler *handlers;
    fs_status (*apply)(const fs_event *event);
    const fs_query *queries;
    /* How the host finds the key of an event: the number of a token, or a name or pointer. */
    struct {
        fs_key_rule rule;
        uint32_t token;
        const char *name;
    } key;
    bool headers;
    /* Raise it if the code changes the meaning of old keys or values. Zero is 1. */
    uint32_t state_version;
    uint32_t attempts, initial_backoff_ms, max_backoff_ms;
    uint64_t memory_bytes, state_bytes;
    uint32_t deadline_ms, batch_events;
    /* How to recognise events that a producer published twice; a window of zero does not. */
    struct {
        fs_id_rule id;
        const char *name;
        uint64_t window_ms;
        uint32_t ids_max;
    } inbox;
} fs_projection;

/* A module defines this. */
extern const fs_projection foldstream_projection;

#endif
