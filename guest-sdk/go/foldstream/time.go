package foldstream

import (
	"math"
	"strconv"
	"time"
)

// Timestamp is an instant: nanoseconds since 1970-01-01T00:00:00Z, up to the year 2554. There is no
// clock: a fold depends on its events only.
//
// It is shown, stored and used as a key in RFC 3339 with nine decimals, such as
// 2026-11-23T14:05:06.123456789Z, which sorts as time does.
type Timestamp uint64

// Date is a day in UTC: days since 1970-01-01, up to 9999-12-31. It is shown, stored and used as a
// key as 2026-11-23.
type Date int32

const (
	dayNanoseconds = 86_400_000_000_000
	dateMax        = 2_932_896 // 9999-12-31

	timeExpected = "expected a time such as 2026-11-23T14:05:06Z, 1970 to 2554"
	dateExpected = "expected a date such as 2026-11-23, 1970 to 9999"
)

// ParseTimestamp reads RFC 3339, with Z or an offset.
func ParseTimestamp(text string) (Timestamp, error) {
	// 2026-11-23T14:05:06, perhaps a fraction, and Z or an offset.
	if len(text) < 20 || (text[10]|0x20 != 't' && text[10] != ' ') || text[13] != ':' || text[16] != ':' {
		return 0, mismatch(timeExpected)
	}
	day, err := ParseDate(text[:10])
	hour, hourFits := twoDigits(text[11:13], 23)
	minute, minuteFits := twoDigits(text[14:16], 59)
	second, secondFits := twoDigits(text[17:19], 59)
	if err != nil || !hourFits || !minuteFits || !secondFits {
		return 0, mismatch(timeExpected)
	}
	rest, nanoseconds := text[19:], int64(0)
	if rest[0] == '.' {
		digits, unit := 1, int64(100_000_000)
		for ; digits < len(rest) && rest[digits] >= '0' && rest[digits] <= '9'; digits++ {
			nanoseconds += int64(rest[digits]-'0') * unit
			unit /= 10
		}
		if digits == 1 || digits > 10 {
			return 0, mismatch(timeExpected)
		}
		rest = rest[digits:]
	}
	offset, fits := offsetSeconds(rest)
	if !fits {
		return 0, mismatch(timeExpected)
	}
	seconds := int64(day)*86_400 + int64(hour*3_600+minute*60+second) - offset
	// The last second of the range is left out for a simpler check.
	if seconds < 0 || seconds >= 18_446_744_073 {
		return 0, mismatch(timeExpected)
	}
	return Timestamp(uint64(seconds)*1_000_000_000 + uint64(nanoseconds)), nil
}

func twoDigits(text string, most int) (int, bool) {
	number := int(text[0]-'0')*10 + int(text[1]-'0')
	digits := text[0] >= '0' && text[0] <= '9' && text[1] >= '0' && text[1] <= '9'
	return number, digits && number <= most
}

// offsetSeconds reads Z, or an offset such as +02:00.
func offsetSeconds(text string) (int64, bool) {
	if text == "Z" || text == "z" {
		return 0, true
	}
	if len(text) != 6 || (text[0] != '+' && text[0] != '-') || text[3] != ':' {
		return 0, false
	}
	hours, hoursFit := twoDigits(text[1:3], 23)
	minutes, minutesFit := twoDigits(text[4:6], 59)
	offset := int64(hours*3_600 + minutes*60)
	if text[0] == '-' {
		offset = -offset
	}
	return offset, hoursFit && minutesFit
}

// Date is the day in UTC.
func (t Timestamp) Date() Date { return Date(t / dayNanoseconds) }

// Time is the same instant, in UTC.
func (t Timestamp) Time() time.Time { return time.Unix(int64(t/1e9), int64(t%1e9)).UTC() }

// Add is an instant later by a duration; earlier, if it is negative. It is at most the last instant
// and at least the first one.
func (t Timestamp) Add(span time.Duration) Timestamp {
	sum := t + Timestamp(span)
	switch {
	case span >= 0 && sum < t:
		return math.MaxUint64
	case span < 0 && sum > t:
		return 0
	}
	return sum
}

// Sub is how much later the instant is than another; like that of time.Time, at most the longest
// duration, about 292 years.
func (t Timestamp) Sub(other Timestamp) time.Duration {
	if t < other {
		return -min(other-t, math.MaxInt64).duration()
	}
	return min(t-other, math.MaxInt64).duration()
}

func (t Timestamp) duration() time.Duration { return time.Duration(t) }

// String is the instant in RFC 3339 with nine decimals.
func (t Timestamp) String() string { return string(t.appendText(nil)) }

func (t Timestamp) appendText(to []byte) []byte {
	to = append(t.Date().appendText(to), 'T')
	nanoseconds := uint64(t % dayNanoseconds)
	seconds := nanoseconds / 1e9
	to = append(appendDigits(to, seconds/3_600, 2), ':')
	to = append(appendDigits(to, seconds/60%60, 2), ':')
	to = append(appendDigits(to, seconds%60, 2), '.')
	return append(appendDigits(to, nanoseconds%1e9, 9), 'Z')
}

// ParseDate reads a day such as 2026-11-23, 1970 to 9999.
func ParseDate(text string) (Date, error) {
	if len(text) != 10 || text[4] != '-' || text[7] != '-' {
		return 0, mismatch(dateExpected)
	}
	century, centuryFits := twoDigits(text[:2], 99)
	year, yearFits := twoDigits(text[2:4], 99)
	month, monthFits := twoDigits(text[5:7], 12)
	day, dayFits := twoDigits(text[8:], 31)
	year += century * 100
	if !centuryFits || !yearFits || !monthFits || !dayFits || year < 1970 {
		return 0, mismatch(dateExpected)
	}
	found := time.Date(year, time.Month(month), day, 0, 0, 0, 0, time.UTC)
	// Days that do not exist, such as February 30, become others.
	if found.Day() != day || int(found.Month()) != month {
		return 0, mismatch(dateExpected)
	}
	return Date(found.Unix() / 86_400), nil
}

// Time is the beginning of the day, in UTC.
func (d Date) Time() time.Time { return time.Unix(int64(d)*86_400, 0).UTC() }

// String is the day as 2026-11-23.
func (d Date) String() string { return string(d.appendText(nil)) }

func (d Date) appendText(to []byte) []byte {
	year, month, day := d.Time().Date()
	to = append(appendDigits(to, uint64(year), 4), '-')
	to = append(appendDigits(to, uint64(month), 2), '-')
	return appendDigits(to, uint64(day), 2)
}

func (d Date) check() error {
	if d < 0 || d > dateMax {
		return mismatch("expected a date from 1970 to 9999, found day ", strconv.Itoa(int(d)))
	}
	return nil
}

// appendDigits appends a number with leading zeros.
func appendDigits(to []byte, number uint64, width int) []byte {
	digits := strconv.AppendUint(make([]byte, 0, 20), number, 10)
	for missing := width - len(digits); missing > 0; missing-- {
		to = append(to, '0')
	}
	return append(to, digits...)
}
