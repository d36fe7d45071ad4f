//go:build !wasip1

package projection

import "foldstream"

func export(func(*foldstream.Projection)) {
	// In a test there is no host.
}
