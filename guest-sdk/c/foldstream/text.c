/* Texts, times and memory. */
#include "internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct fs_chunk {
    fs_chunk *before;
    size_t size;
    _Alignas(16) char memory[];
};

/* Large enough that most batches need few, small enough for an edge node. */
#define CHUNK_BYTES ((size_t)64 << 10)

void *fs_allocate(fs_arena *arena, size_t size) {
    size = (size + 15) & ~(size_t)15;
    if (arena->chunks == NULL || arena->chunks->size - arena->used < size) {
        size_t wanted = size > CHUNK_BYTES ? size : CHUNK_BYTES;
        fs_chunk *chunk = malloc(sizeof(fs_chunk) + wanted);
        if (chunk == NULL) {
            /* Not the event's fault: the host says which limit it was. */
            abort();
        }
        *chunk = (fs_chunk){.before = arena->chunks, .size = wanted};
        arena->chunks = chunk;
        arena->used = 0;
        arena->total += wanted;
    }
    void *memory = arena->chunks->memory + arena->used;
    arena->used += size;
    return memory;
}

void fs_release(fs_arena *arena) {
    while (arena->chunks != NULL) {
        fs_chunk *before = arena->chunks->before;
        free(arena->chunks);
        arena->chunks = before;
    }
    arena->used = arena->total = 0;
}

fs_text fs_keep(fs_arena *arena, fs_text text) {
    char *copy = fs_allocate(arena, text.length + 1);
    if (text.length > 0) {
        memcpy(copy, text.at, text.length);
    }
    copy[text.length] = 0;
    return (fs_text){copy, text.length};
}

fs_text fs_text_of(const char *string) { return (fs_text){string, strlen(string)}; }

bool fs_text_equal(fs_text one, fs_text other) {
    return one.length == other.length && (one.length == 0 || memcmp(one.at, other.at, one.length) == 0);
}

fs_text fs_copy(fs_text text) { return fs_keep(&fs_instance.batch, text); }

void fs_put(fs_buffer *buffer, const char *at, size_t length) {
    if (buffer->capacity - buffer->length < length) {
        size_t capacity = (buffer->length + length) * 2 + 64;
        char *larger = fs_allocate(buffer->arena, capacity);
        if (buffer->length > 0) {
            memcpy(larger, buffer->at, buffer->length);
        }
        buffer->at = larger;
        buffer->capacity = capacity;
    }
    if (length > 0) {
        memcpy(buffer->at + buffer->length, at, length);
    }
    buffer->length += length;
}

void fs_put_string(fs_buffer *buffer, const char *string) { fs_put(buffer, string, strlen(string)); }

void fs_put_char(fs_buffer *buffer, char character) { fs_put(buffer, &character, 1); }

void fs_put_digits(fs_buffer *buffer, uint64_t number, int width) {
    char digits[20];
    int start = 20;
    do {
        digits[--start] = (char)('0' + number % 10);
        number /= 10;
    } while (number > 0);
    while (20 - start < width) {
        digits[--start] = '0';
    }
    fs_put(buffer, digits + start, (size_t)(20 - start));
}

/* How many bytes the first character has; 0 if it is not UTF-8. */
static int character(const char *text, const char *behind) {
    const unsigned char *at = (const unsigned char *)text;
    if (*at < 0x80) {
        return 1;
    }
    int more = *at >= 0xF0 ? 3 : *at >= 0xE0 ? 2 : 1;
    if (*at < 0xC2 || *at > 0xF4 || behind - text <= more) {
        return 0;
    }
    uint32_t rune = *at & (0x3F >> more);
    for (int place = 1; place <= more; place++) {
        if ((at[place] & 0xC0) != 0x80) {
            return 0;
        }
        rune = rune << 6 | (at[place] & 0x3F);
    }
    bool shortest = rune >= (more == 3 ? 0x10000u : more == 2 ? 0x800u : 0x80u);
    bool is_half = rune >= 0xD800 && rune <= 0xDFFF;
    return shortest && rune <= 0x10FFFF && !is_half ? more + 1 : 0;
}

bool fs_is_utf8(fs_text text) {
    const char *at = text.at, *end = at + text.length;
    int length = 1;
    for (; at < end && length > 0; at += length) {
        length = character(at, end);
    }
    return length > 0;
}

/* Replaces what is not UTF-8, such as half of a character where a message was cut: a host would end
 * the call instead of taking the message. */
static void clean(char *message) {
    char *end = message + strlen(message);
    for (char *at = message; at < end;) {
        int length = character(at, end);
        if (length == 0) {
            *at = '?';
            length = 1;
        }
        at += length;
    }
}

/* ---- Days, as in Howard Hinnant's "chrono-compatible low-level date algorithms". ---- */

static int32_t days_from(int32_t year, int32_t month, int32_t day) {
    year -= month <= 2;
    int32_t era = year / 400, of_era = year - era * 400;
    int32_t of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
    return era * 146097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719468;
}

static void civil_from(int32_t days, int32_t *year, int32_t *month, int32_t *day) {
    days += 719468;
    int32_t era = days / 146097, of_era = days - era * 146097;
    int32_t of_400 = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
    int32_t of_year = of_era - (365 * of_400 + of_400 / 4 - of_400 / 100);
    int32_t shifted = (5 * of_year + 2) / 153;
    *day = of_year - (153 * shifted + 2) / 5 + 1;
    *month = shifted + (shifted < 10 ? 3 : -9);
    *year = of_400 + era * 400 + (*month <= 2);
}

void fs_put_date(fs_buffer *buffer, fs_date date) {
    int32_t year, month, day;
    civil_from(date.days, &year, &month, &day);
    fs_put_digits(buffer, (uint64_t)year, 4);
    fs_put_char(buffer, '-');
    fs_put_digits(buffer, (uint64_t)month, 2);
    fs_put_char(buffer, '-');
    fs_put_digits(buffer, (uint64_t)day, 2);
}

void fs_put_time(fs_buffer *buffer, fs_time time) {
    uint64_t seconds = time.nanoseconds / 1000000000;
    fs_put_date(buffer, fs_date_of(time));
    fs_put_char(buffer, 'T');
    fs_put_digits(buffer, seconds / 3600 % 24, 2);
    fs_put_char(buffer, ':');
    fs_put_digits(buffer, seconds / 60 % 60, 2);
    fs_put_char(buffer, ':');
    fs_put_digits(buffer, seconds % 60, 2);
    fs_put_char(buffer, '.');
    fs_put_digits(buffer, time.nanoseconds % 1000000000, 9);
    fs_put_char(buffer, 'Z');
}

fs_date fs_date_of(fs_time time) { return (fs_date){(int32_t)(time.nanoseconds / 86400000000000)}; }

/* Reads digits, at most nine; -1 if one of them is none. */
static int32_t digits_at(const char *at, int count) {
    int32_t number = 0;
    for (int place = 0; place < count; place++) {
        if (at[place] < '0' || at[place] > '9') {
            return -1;
        }
        number = number * 10 + (at[place] - '0');
    }
    return number;
}

bool fs_read_date(fs_text text, fs_date *date) {
    if (text.length != 10 || text.at[4] != '-' || text.at[7] != '-') {
        return false;
    }
    int32_t year = digits_at(text.at, 4), month = digits_at(text.at + 5, 2);
    int32_t day = digits_at(text.at + 8, 2), found_year, found_month, found_day;
    if (year < 1970 || month < 1 || month > 12 || day < 1 || day > 31) {
        return false;
    }
    date->days = days_from(year, month, day);
    /* Days that do not exist, such as February 30, are others. */
    civil_from(date->days, &found_year, &found_month, &found_day);
    return found_month == month && found_day == day;
}

/* Reads Z, or an offset such as +02:00, in seconds. */
static bool read_offset(const char *at, size_t length, int64_t *offset) {
    *offset = 0;
    if (length == 1) {
        return *at == 'Z' || *at == 'z';
    }
    if (length != 6 || (*at != '+' && *at != '-') || at[3] != ':') {
        return false;
    }
    int32_t hours = digits_at(at + 1, 2), minutes = digits_at(at + 4, 2);
    *offset = (*at == '-' ? -60 : 60) * (int64_t)(hours * 60 + minutes);
    return hours >= 0 && hours <= 23 && minutes >= 0 && minutes <= 59;
}

bool fs_read_time(fs_text text, fs_time *time) {
    const char *at = text.at;
    if (text.length < 20 || (at[10] != 'T' && at[10] != 't' && at[10] != ' ') || at[13] != ':' ||
        at[16] != ':') {
        return false;
    }
    fs_date day;
    int32_t hour = digits_at(at + 11, 2), minute = digits_at(at + 14, 2);
    int32_t second = digits_at(at + 17, 2);
    if (!fs_read_date((fs_text){at, 10}, &day) || hour < 0 || hour > 23 || minute < 0 || minute > 59 ||
        second < 0 || second > 59) {
        return false;
    }
    size_t place = 19;
    uint64_t nanoseconds = 0;
    if (at[place] == '.') {
        uint64_t unit = 1000000000;
        for (place++; place < text.length && at[place] >= '0' && at[place] <= '9'; place++) {
            unit /= 10;
            nanoseconds += (uint64_t)(at[place] - '0') * unit;
        }
        if (place == 20 || place > 29) {
            return false;
        }
    }
    int64_t offset;
    if (!read_offset(at + place, text.length - place, &offset)) {
        return false;
    }
    int64_t seconds = (int64_t)day.days * 86400 + hour * 3600 + minute * 60 + second - offset;
    /* The last second of the range is left out for a simpler check. */
    if (seconds < 0 || seconds >= 18446744073) {
        return false;
    }
    time->nanoseconds = (uint64_t)seconds * 1000000000 + nanoseconds;
    return true;
}

/* ---- Errors and messages. ---- */

static void remember(fs_status status, const char *format, va_list arguments) {
    fs_state *state = &fs_instance;
    if (state->failure != FS_OK) {
        return;
    }
    state->failure = status;
    vsnprintf(state->message, sizeof(state->message), format, arguments);
    clean(state->message);
}

bool fs_mismatch(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    remember(FS_REJECTED, format, arguments);
    va_end(arguments);
    return false;
}

void fs_within(const char *format, ...) {
    char before[FS_MESSAGE_MAX], *message = fs_instance.message;
    va_list arguments;
    va_start(arguments, format);
    int printed = vsnprintf(before, sizeof(before), format, arguments);
    va_end(arguments);
    size_t length = printed < 0 ? 0 : (size_t)printed;
    if (length >= sizeof(before)) {
        length = sizeof(before) - 1;
    }
    /* The end of a message that is too long is left out. */
    memmove(message + length, message, FS_MESSAGE_MAX - length);
    memcpy(message, before, length);
    message[FS_MESSAGE_MAX - 1] = 0;
    clean(message);
}

fs_status fs_failed(fs_status status, const char *file, int line, const char *format, ...) {
    fs_state *state = &fs_instance;
    if (state->failure == FS_OK) {
        va_list arguments;
        va_start(arguments, format);
        remember(status, format, arguments);
        va_end(arguments);
        const char *name = strrchr(file, '/');
        size_t length = strlen(state->message);
        if (status != FS_INVALID) {
            snprintf(state->message + length, sizeof(state->message) - length, " (%s:%d)",
                name == NULL ? file : name + 1, line);
        }
    }
    return state->failure;
}

void fs_log(fs_level level, const char *format, ...) {
    char message[FS_MESSAGE_MAX];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof(message), format, arguments);
    va_end(arguments);
    clean(message);
    fs_instance.backend->log(level, fs_text_of(message));
}
