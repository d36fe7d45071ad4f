package foldstream

import (
	"reflect"
	"strconv"
	"unsafe"
)

// Versions are the versions of an event, each with a type of its own, read as the newest one:
//
//	var placed = foldstream.NextVersion(
//		foldstream.FirstVersion[PlacedV1]("placed"),
//		"placed.v2", func(old PlacedV1) (Placed, error) {
//			return Placed{Order: old.Order, Currency: "EUR"}, nil
//		})
//
//	foldstream.OnVersions(p, placed, func(event *foldstream.Event, data Placed) error { ... })
//
// They keep no state, so several modules may share them.
type Versions[T any] struct {
	// Types of the events, the oldest version first.
	kinds []string
	reads map[string]func(event *Event) (T, error)
}

// FirstVersion is the first version of an event: its type, and that of its data.
func FirstVersion[T any](kind string) Versions[T] {
	return Versions[T]{[]string{kind}, map[string]func(*Event) (T, error){kind: reads[T](kind)}}
}

// NextVersion adds a newer version, whose events have another type. The function converts the data of
// the version before. It must be pure: each rebuild repeats it. Its error says that an old event has
// no form in the new version, and rejects the event; [Retry] does as well, since the same data never
// converts in another way.
func NextVersion[Old, New any](old Versions[Old], kind string, convert func(old Old) (New, error)) Versions[New] {
	if _, known := old.reads[kind]; known {
		panic("foldstream: two versions have the type " + kind)
	}
	old.first()
	next := Versions[New]{reads: map[string]func(*Event) (New, error){kind: reads[New](kind)}}
	for _, before := range old.kinds {
		read := old.reads[before]
		next.kinds = append(next.kinds, before)
		next.reads[before] = func(event *Event) (converted New, err error) {
			data, err := read(event)
			if err != nil {
				return converted, err
			}
			if converted, err = convert(data); err != nil {
				return converted, mismatch(shownWithKind(event), " does not become the current version: ", err.Error())
			}
			return converted, nil
		}
	}
	next.kinds = append(next.kinds, kind)
	return next
}

// reads decodes the data of events of one type.
func reads[T any](kind string) func(event *Event) (T, error) {
	decoder, err := codecOf(reflect.TypeFor[T]())
	if err != nil {
		panic("foldstream: events of type " + kind + ": " + err.Error())
	}
	return func(event *Event) (data T, err error) {
		err = event.decode(decoder, unsafe.Pointer(&data))
		return data, err
	}
}

func shownWithKind(event *Event) string {
	return "event " + strconv.FormatUint(event.Sequence, 10) + " (" + event.Subject + ") of type " + event.Kind
}

// Has says whether an event is of one of the versions.
func (v Versions[T]) Has(event *Event) bool {
	_, known := v.reads[event.Kind]
	return known
}

// Data is the data of an event of any version, as the newest one. Return the error: it rejects the
// event, which does not match the type of its own version, has no form in the next one, or is of
// another type.
func (v Versions[T]) Data(event *Event) (data T, err error) {
	read, known := v.reads[event.Kind]
	if !known {
		return data, mismatch(shownWithKind(event), " is no version of ", v.first())
	}
	return read(event)
}

// first is the type of the oldest version.
func (v Versions[T]) first() string {
	if len(v.kinds) == 0 {
		panic("foldstream: these Versions have none; begin with FirstVersion")
	}
	return v.kinds[0]
}

// OnVersions handles events of all versions, with their data as the newest one; see [On].
func OnVersions[T any](p *Projection, versions Versions[T], handle func(event *Event, data T) error) {
	onVersions(&p.module, versions, func(event *Event, data T, _ *Effects) error { return handle(event, data) })
}

// HandleVersions handles events of all versions, with their data as the newest one; see [Handle].
func HandleVersions[T any](h *Handler, versions Versions[T], handle func(event *Event, data T, effects *Effects) error) {
	onVersions(&h.module, versions, handle)
}

func onVersions[T any](m *module, versions Versions[T], react func(*Event, T, *Effects) error) {
	versions.first()
	for _, kind := range versions.kinds {
		read := versions.reads[kind]
		m.add(kind, func(event *Event, effects *Effects) error {
			data, err := read(event)
			if err != nil {
				return err
			}
			return react(event, data, effects)
		})
	}
}
