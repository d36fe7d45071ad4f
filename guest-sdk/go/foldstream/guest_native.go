//go:build !wasip1

package foldstream

// Export makes a projection the module. Call it once, from a function init of package main.
func Export(projection func(p *Projection)) {
	// In a test there is no host.
}
