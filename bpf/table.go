package bpf

import (
	"errors"
	"fmt"
	"iter"
)

// Table is one map. Several goroutines may use it; if two write the same key, the
// later one wins.
//
// Arrays (settings, revisions, budgets, nodes, clusters, ports) always have a row for every
// index: Delete writes the zero row, and All, Len and Lookup treat it as absent.
type Table[K comparable, V any] interface {
	// Name is the map's name without its version, such as "flows".
	Name() string
	// MaxEntries is the map's limit, in rows.
	MaxEntries() int
	// Update creates or replaces a row. If there is no room, it returns a FullError.
	Update(K, V) error
	// UpdateBatch creates or replaces many rows. After an error, some are written.
	UpdateBatch(map[K]V) error
	// Delete removes a row; nil if it is absent.
	Delete(K) error
	// DeleteBatch removes many rows, whether present or not.
	DeleteBatch([]K) error
	// Lookup reads the row with exactly this key, also in the prefix table.
	Lookup(K) (V, bool, error)
	// Match reads the row that a packet finds with this key: in a table of prefixes that of
	// the longest one that covers it, elsewhere that of Lookup.
	Match(K) (V, bool, error)
	// All yields the rows. The function that it returns as well tells, after the
	// walk, why it ended early; nil if it did not. Rows that change meanwhile may be
	// missed or come twice.
	All() (iter.Seq2[K, V], func() error)
	// Len counts the rows; in the kernel it walks over all of them.
	Len() (int, error)
}

// ErrFull matches every FullError with errors.Is.
var ErrFull = errors.New("table is full")

// FullError is the error of a write to a full table.
type FullError struct {
	Table string
	Limit int
}

func (e *FullError) Error() string {
	return fmt.Sprintf("table %s is full at %d rows; raise limits.%s in the agent's configuration (--limit-%s)",
		e.Table, e.Limit, e.Table, e.Table)
}

func (e *FullError) Is(target error) bool { return target == ErrFull }
