package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Keys of changes: what operators change together in one go. Only API servers read them.
const (
	changesPrefix = "weft/changes/"
	// ChangeTurnKey is written by every change when it is committed and when it is carried
	// out, so that whoever has read objects finds out whether they changed since. Its value
	// names the change's user.
	ChangeTurnKey = changesPrefix + "turn"
	// ChangeKey holds the Change that is being carried out; absent if there is none.
	ChangeKey = changesPrefix + "committed"
	// ChangeDraftsPrefix holds a Change per change that is being prepared.
	ChangeDraftsPrefix = changesPrefix + "drafts/"
	changePartsPrefix  = changesPrefix + "parts/"
)

// ChangeDraftKey holds a Change until it is committed.
func ChangeDraftKey(id string) string { return ChangeDraftsPrefix + id }

// ChangePartsPrefix covers the parts of a change.
func ChangePartsPrefix(id string) string { return changePartsPrefix + id + "/" }

// ChangePartKey holds one part, as MarshalWrites makes it. Parts count from 0.
func ChangePartKey(id string, part int) string {
	return fmt.Sprintf("%s%08d", ChangePartsPrefix(id), part)
}

// ParseChangeDraftKey is the inverse of ChangeDraftKey.
func ParseChangeDraftKey(key string) (id string, ok bool) {
	id, ok = strings.CutPrefix(key, ChangeDraftsPrefix)
	return id, ok && id != "" && !strings.Contains(id, "/")
}

// ChangeFormat is the format of a Change and its parts. A server leaves alone what has
// another one.
const ChangeFormat = 1

// Change is a change that takes more than one transaction, and how far it is carried out.
// The writes are in its parts.
type Change struct {
	Format int       `json:"format"`
	ID     string    `json:"id"`
	User   string    `json:"user"`
	At     time.Time `json:"at"`
	Parts  int       `json:"parts"`
	Writes int       `json:"writes"` // in all parts
	// The next write is number Next of part Part; both count from 0. Made is the number
	// of writes before it.
	Part int `json:"part"`
	Next int `json:"next"`
	Made int `json:"made"`
}

// ParseChange reads a Change that this release can carry out.
func ParseChange(b []byte) (Change, error) {
	c, err := Unmarshal[Change](b)
	switch {
	case err != nil:
		return c, err
	case c.Format != ChangeFormat:
		return c, fmt.Errorf("a change of format %d; this release knows format %d", c.Format, ChangeFormat)
	case c.ID == "" || strings.Contains(c.ID, "/"):
		return c, fmt.Errorf("a change with the ID %q", c.ID)
	case c.Part < 0 || c.Part >= c.Parts || c.Next < 0 || c.Made < 0 || c.Made >= c.Writes:
		return c, fmt.Errorf("change %s has write %d of %d in part %d of %d", c.ID, c.Made, c.Writes, c.Part, c.Parts)
	}
	return c, nil
}

// Write is one write of a change.
type Write struct {
	Key    string
	Value  []byte
	Delete bool
	// Action is what the audit trail says was done to the object; "" if the write is not
	// of an object.
	Action string
}

// What a write in a part begins with.
const (
	writePut    = 1
	writeDelete = 2
)

// MarshalWrites returns a part: for each write a byte that says put or delete, then key,
// action and value, each after its length.
func MarshalWrites(writes []Write) []byte {
	size := 0
	for i := range writes {
		size += writes[i].Size()
	}
	b := make([]byte, 0, size)
	for _, w := range writes {
		kind := byte(writePut)
		if w.Delete {
			kind = writeDelete
		}
		b = append(b, kind)
		for _, field := range []string{w.Key, w.Action, string(w.Value)} {
			b = binary.AppendUvarint(b, uint64(len(field)))
			b = append(b, field...)
		}
	}
	return b
}

// Size is how many bytes the write takes in a part, at most.
func (w *Write) Size() int {
	return 1 + 3*binary.MaxVarintLen32 + len(w.Key) + len(w.Action) + len(w.Value)
}

var errPartEnds = errors.New("the part ends within a write")

// UnmarshalWrites reads a part. The writes share its memory.
func UnmarshalWrites(b []byte) (writes []Write, err error) {
	for len(b) > 0 {
		kind := b[0]
		b = b[1:]
		if kind != writePut && kind != writeDelete {
			return nil, fmt.Errorf("write %d is of unknown kind %d", len(writes), kind)
		}
		var fields [3][]byte
		for i := range fields {
			n, used := binary.Uvarint(b)
			if used <= 0 || n > uint64(len(b)-used) {
				return nil, errPartEnds
			}
			fields[i], b = b[used:used+int(n)], b[used+int(n):]
		}
		w := Write{Key: string(fields[0]), Action: string(fields[1]), Value: fields[2], Delete: kind == writeDelete}
		if w.Key == "" || w.Delete && len(w.Value) > 0 {
			return nil, fmt.Errorf("write %d has no key, or deletes with a value", len(writes))
		}
		writes = append(writes, w)
	}
	return writes, nil
}
