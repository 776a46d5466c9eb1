// Package identitytest is the in-memory twin of the store that package
// identity allocates from.
//
// It is linearizable and keeps everything in memory only.
package identitytest

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/weft-mesh/weft/identity"
)

// ErrInjected is for hooks to return.
var ErrInjected = errors.New("injected failure")

// Op is a call of the store, as hooks see it.
type Op struct {
	Name string       // Get, List or Commit
	Key  string       // of Get; prefix of List
	Txn  identity.Txn // of Commit
}

// Store is an identity.Store in memory. Safe for concurrent use.
type Store struct {
	// Before is called before every operation, without any lock held, and may
	// use the store itself. If it fails, the operation does not happen and
	// returns its error. Set it before the first use.
	Before func(Op) error
	// After is called after every operation. If it fails, the caller gets its
	// error although the operation happened.
	After func(Op) error

	mu       sync.Mutex
	rows     map[string]identity.Row
	revision int64
	commits  int
}

var _ identity.Store = (*Store)(nil)

// New is an empty store.
func New() *Store { return &Store{rows: map[string]identity.Row{}} }

// Get implements identity.Store.
func (s *Store) Get(ctx context.Context, key string) (row identity.Row, there bool, err error) {
	err = s.do(ctx, Op{Name: "Get", Key: key}, func() { row, there = s.rows[key] })
	if err != nil {
		return identity.Row{}, false, err
	}
	return row, there, nil
}

// List implements identity.Store.
func (s *Store) List(ctx context.Context, prefix string) (rows []identity.Row, err error) {
	err = s.do(ctx, Op{Name: "List", Key: prefix}, func() { rows = s.listLocked(prefix) })
	if err != nil {
		return nil, err
	}
	return rows, nil
}

// Commit implements identity.Store.
func (s *Store) Commit(ctx context.Context, txn identity.Txn) (ok bool, err error) {
	err = s.do(ctx, Op{Name: "Commit", Txn: txn}, func() { ok = s.commitLocked(txn) })
	return ok && err == nil, err
}

// CommitEach implements identity.Store, one transaction after the other. Hooks see
// each one.
func (s *Store) CommitEach(ctx context.Context, txns []identity.Txn) []identity.Outcome {
	outcomes := make([]identity.Outcome, len(txns))
	for i, txn := range txns {
		err := s.do(ctx, Op{Name: "Commit", Txn: txn}, func() {
			if s.commitLocked(txn) {
				outcomes[i].Revision = s.revision
			}
		})
		if err != nil {
			outcomes[i] = identity.Outcome{Err: err}
		}
	}
	return outcomes
}

func (s *Store) do(ctx context.Context, op Op, act func()) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.Before != nil {
		if err := s.Before(op); err != nil {
			return err
		}
	}
	s.mu.Lock()
	act()
	s.mu.Unlock()
	if s.After != nil {
		return s.After(op)
	}
	return nil
}

func (s *Store) listLocked(prefix string) []identity.Row {
	var rows []identity.Row
	for key, row := range s.rows {
		if strings.HasPrefix(key, prefix) {
			rows = append(rows, row)
		}
	}
	slices.SortFunc(rows, func(a, b identity.Row) int { return strings.Compare(a.Key, b.Key) })
	return rows
}

func (s *Store) commitLocked(txn identity.Txn) bool {
	for _, c := range txn.If {
		if c.Prefix && len(s.listLocked(c.Key)) > 0 || !c.Prefix && s.rows[c.Key].Revision != c.Revision {
			return false
		}
	}
	s.revision++
	s.commits++
	for _, c := range txn.Then {
		if c.Delete {
			delete(s.rows, c.Key)
			continue
		}
		s.rows[c.Key] = identity.Row{Key: c.Key, Value: slices.Clone(c.Value), Revision: s.revision}
	}
	return true
}

// Put writes a key without calling hooks.
func (s *Store) Put(key, value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.commitLocked(identity.Txn{Then: []identity.Change{{Key: key, Value: []byte(value)}}})
}

// Expire deletes every key for which lost returns true, as the end of a lease would,
// without calling hooks. It returns how many there were.
func (s *Store) Expire(lost func(key string) bool) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := len(s.rows)
	s.revision++
	maps.DeleteFunc(s.rows, func(key string, _ identity.Row) bool { return lost(key) })
	return before - len(s.rows)
}

// Dump returns a copy of everything, without calling hooks.
func (s *Store) Dump() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[string]string, len(s.rows))
	for key, row := range s.rows {
		out[key] = string(row.Value)
	}
	return out
}

// Commits returns how many transactions were committed.
func (s *Store) Commits() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.commits
}
