/* What the files of the SDK share. */
#ifndef FOLDSTREAM_INTERNAL_H
#define FOLDSTREAM_INTERNAL_H

#include "foldstream.h"

/* Memory that is released as a whole. */
typedef struct fs_chunk fs_chunk;
typedef struct {
    fs_chunk *chunks;
    /* Used of the newest chunk, and the size of all of them. */
    size_t used, total;
} fs_arena;

void *fs_allocate(fs_arena *arena, size_t size);
void fs_release(fs_arena *arena);
fs_text fs_keep(fs_arena *arena, fs_text text);

/* Text that grows, in an arena. */
typedef struct {
    fs_arena *arena;
    char *at;
    size_t length, capacity;
} fs_buffer;

void fs_put(fs_buffer *buffer, const char *at, size_t length);
void fs_put_string(fs_buffer *buffer, const char *string);
void fs_put_char(fs_buffer *buffer, char character);
void fs_put_digits(fs_buffer *buffer, uint64_t number, int width);
void fs_put_date(fs_buffer *buffer, fs_date day);
void fs_put_time(fs_buffer *buffer, fs_time time);
static inline fs_text fs_written(const fs_buffer *buffer) {
    return (fs_text){buffer->at, buffer->length};
}

bool fs_read_date(fs_text text, fs_date *day);
bool fs_read_time(fs_text text, fs_time *time);
bool fs_is_utf8(fs_text text);

/* A key or a write for the host: a pair of texts. */
typedef struct fs_entry {
    fs_text key, value;
    bool deletes;
} fs_entry;

/* The state of a host, or one in memory. */
typedef struct {
    /* Values live until the batch ends. */
    bool (*get)(fs_text key, fs_text *value);
    void (*put_many)(const fs_entry *entries, size_t count);
    fs_entry *(*scan)(fs_text start, fs_text end, fs_text after, bool backwards, size_t limit,
        size_t *count, bool *more);
    void (*log)(fs_level level, fs_text message);
} fs_backend;

#define FS_NO_EVENT (-1)
#define FS_MESSAGE_MAX 4096

/* The one instance of a module. */
typedef struct {
    const fs_backend *backend;
    /* What lives as long as the tables keep it, and what lives until the batch ends. */
    fs_arena kept, batch;
    size_t entries;
    /* Index in the batch of the event that is being applied. */
    int event;
    /* Index of the event whose value could not be written. */
    int blamed;
    bool writable;
    /* The first error of the event, or of the query. */
    fs_status failure;
    char message[FS_MESSAGE_MAX];
} fs_state;

extern fs_state fs_instance;

/* Remembers an error without a place; returns false. */
__attribute__((format(printf, 1, 2))) bool fs_mismatch(const char *format, ...);
/* Puts words in front of the message. */
__attribute__((format(printf, 1, 2))) void fs_within(const char *format, ...);

/* Reads JSON of a type; texts are put into an arena. */
bool fs_decode(fs_arena *arena, fs_text json, const fs_type *type, void *into);
/* Writes a value as JSON. */
bool fs_encode(fs_buffer *buffer, const fs_type *type, const void *value);
bool fs_has_texts(const fs_type *type);

bool fs_write_key(fs_buffer *buffer, const fs_kind *kinds, fs_key key);
bool fs_read_key(fs_arena *arena, const fs_kind *kinds, fs_text text, fs_key *key);
void fs_escape(fs_buffer *buffer, fs_text text);

/* Writes what has changed in any table. */
bool fs_flush(void);
/* Between two events: if the tables have grown too large, they start empty. */
bool fs_make_room(void);
/* Empties all tables, as when an instance begins. */
void fs_reset(void);

/* Applies events; returns the index of the one that failed, or FS_NO_EVENT. */
int fs_apply_batch(const fs_event *events, size_t count);
/* Answers a query into *answer; `known` says whether there is such a query. */
fs_status fs_answer_query(fs_text name, fs_text arguments, fs_text *answer, bool *known);

#endif
