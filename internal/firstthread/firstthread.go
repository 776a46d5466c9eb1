// Package firstthread keeps all goroutines but the main one off the process's first
// thread. It is imported for this effect alone, by packages whose goroutines lock their
// thread, move it into another namespace and let it end with them.
//
// The first thread cannot end before the process does: it would stay in the namespace and
// keep it, and /proc/self, which is about that thread, would show the namespace as the
// process's own.
package firstthread

import "runtime"

// Package initialization runs on the first thread, and what locks it there locks the
// main goroutine to it for good.
func init() { runtime.LockOSThread() }
