// Package projection makes a projection the module that foldstream build builds.
package projection

import "foldstream"

// Export makes a projection the module. Call it once, from a function init of package main:
//
//	func init() { projection.Export(Visits) }
func Export(define func(p *foldstream.Projection)) { export(define) }
