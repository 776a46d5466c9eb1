package identity

import (
	"context"
	"slices"
)

// Store keeps keys with revisions, like etcd. It is safe for concurrent use. After an
// error it is unknown whether a Commit happened.
type Store interface {
	// Get reads one key, linearizably; false if it is absent.
	Get(ctx context.Context, key string) (Row, bool, error)
	// List reads all keys with the prefix as of one moment, sorted by key.
	List(ctx context.Context, prefix string) ([]Row, error)
	// Commit makes all changes if every condition holds; otherwise it makes none
	// and returns false.
	Commit(ctx context.Context, txn Txn) (bool, error)
	// CommitEach commits many transactions, each whole or not at all. Those that
	// share a commit have their conditions checked together, before any of their
	// changes; two of them may make the same change.
	CommitEach(ctx context.Context, txns []Txn) []Outcome
}

// Outcome is the result of one transaction of CommitEach: committed at Revision; not
// committed because a condition does not hold (Revision 0); or unknown, if Err is set.
type Outcome struct {
	Revision int64
	Err      error
}

// Row is one key of a Store.
type Row struct {
	Key      string
	Value    []byte
	Revision int64 // of the last change, etcd's ModRevision; never 0
}

// Txn is what Commit does.
type Txn struct {
	If   []Condition
	Then []Change
}

func (t Txn) and(more Txn) Txn {
	return Txn{If: slices.Concat(t.If, more.If), Then: slices.Concat(t.Then, more.Then)}
}

// Condition requires that a key last changed at Revision, or with Revision 0 that it
// is absent. With Prefix set, Revision must be 0, and no key may begin with Key.
type Condition struct {
	Key      string
	Revision int64
	Prefix   bool
}

// Change writes a key or deletes it; deleting an absent key is not an error.
type Change struct {
	Key    string
	Value  []byte
	Delete bool
}

// Keys of the allocation. Numbers are decimal. Labels are in their text form, which
// ends in ";", so the "/" after it cannot be part of them.
//
//	id/<number>              labels   the number is taken, and by whom
//	value/<labels>           number   the only number of these labels
//	value/<labels>/<owner>   number   why it is taken: one for each owner
//	unused/<number>          labels   no owner was found at this revision
//
// The first two are written and deleted together. No key has a lease: a silent owner
// still uses its numbers.
const (
	Prefix       = "weft/state/identities/"
	prefixID     = Prefix + "id/"
	prefixValue  = Prefix + "value/"
	prefixUnused = Prefix + "unused/"
)

// IDKey holds the labels of a number; watch IDPrefix for all of them.
func IDKey(n Number) string { return prefixID + decimal(n) }

// IDPrefix is what every IDKey begins with.
const IDPrefix = prefixID

// ReferenceKey is the key that says owner uses the number of these labels.
func ReferenceKey(labels Labels, owner string) string {
	return referencePrefix(labels.String()) + owner
}

func valueKey(labels string) string        { return prefixValue + labels }
func referencePrefix(labels string) string { return prefixValue + labels + "/" }
func unusedKey(n Number) string            { return prefixUnused + decimal(n) }

// ParseIDRow reads a row under IDPrefix.
func ParseIDRow(key string, value []byte) (Number, Labels, error) {
	n, err := parseDecimal(key, prefixID)
	if err != nil {
		return 0, nil, err
	}
	labels, err := ParseLabels(string(value))
	return n, labels, err
}
