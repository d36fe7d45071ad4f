// Package handler makes a handler the module that foldstream build builds.
package handler

import "foldstream"

// Export makes a handler the module. Call it once, from a function init of package main:
//
//	func init() { handler.Export(Shipping) }
func Export(define func(h *foldstream.Handler)) { export(define) }
