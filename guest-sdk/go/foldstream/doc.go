// Package foldstream is the Foldstream SDK for Go: write a projection or a handler, test it with
// go test, build one .wasm file.
//
//	// Visits counts visits per page.
//	func Visits(p *foldstream.Projection) {
//		p.Manifest = foldstream.Manifest{Name: "visits", Subjects: []string{"visits.*"}}
//		pages := foldstream.NewTable[string, uint64](p, "page")
//		p.Apply(func(event *foldstream.Event) error {
//			*pages.Edit(event.Token(2))++
//			return nil
//		})
//		foldstream.Query(p, "visits", `How often a page was visited: "home"`,
//			func(page string) (uint64, error) {
//				count, found := pages.Get(page)
//				if !found {
//					return 0, foldstream.ErrNotFound
//				}
//				return count, nil
//			})
//	}
//
//	func init() { projection.Export(Visits) }
//
//	func main() {}
//
// Package foldstream/projection makes a [Projection] the module, package foldstream/handler a [Handler].
// Package foldstream/saga runs processes of several steps in a handler, and package
// foldstream/migration converts the state of an older version.
//
// # Errors
//
// An error that a function returns rejects the event; [Retry] asks the host to try again. Reading
// an event or a table can fail too: a subject has no such token, a key is too long, a stored value
// does not match its type. Such a method returns a zero value and remembers the error, as
// [bufio.Writer] does. The event is then rejected, whatever the function returns.
package foldstream
