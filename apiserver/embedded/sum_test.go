package embedded

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"testing"
)

// Only a database of whole sectors that is followed by its own sum gets past the check.
func FuzzBackupSum(f *testing.F) {
	page := make([]byte, 8192)
	copy(page[16:], []byte{0xed, 0xda, 0x0c, 0xed})
	sum := sha256.Sum256(page)
	whole := append(page, sum[:]...)
	f.Add(whole)
	f.Add(whole[:len(whole)-1])
	f.Add(whole[:4096])
	f.Add([]byte("kind: Service"))
	f.Add([]byte{})
	damaged := bytes.Clone(whole)
	damaged[100]++
	f.Add(damaged)
	f.Fuzz(func(t *testing.T, b []byte) {
		err := sumMatches(bytes.NewReader(b), int64(len(b)))
		body := b[:max(0, len(b)-sha256.Size)]
		sum := sha256.Sum256(body)
		good := len(body) >= 20 && bytes.Equal(b[16:20], []byte{0xed, 0xda, 0x0c, 0xed}) && len(body)%512 == 0 && bytes.Equal(sum[:], b[len(body):])
		if (err == nil) != good {
			t.Errorf("%d bytes: %v, want good %v", len(b), err, good)
		}
		if err != nil && !errors.Is(err, ErrNoBackup) {
			t.Error(err)
		}
	})
}
