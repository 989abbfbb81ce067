// Package pstorage is the root of the module. It holds no code of its own, only the tests that
// keep the whole tree in shape: which package may import which, what pure code must not call, and
// how long lines and files may be. ARCHITECTURE.md is the map.
package pstorage
