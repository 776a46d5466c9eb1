package wire

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/weft-mesh/weft/identity"
)

// The allocation of identities. Numbers are decimal. Labels are in their text form, which
// ends in ";", so the "/" after it cannot be part of them.
//
//	id/<number>              labels   the number is taken, and by whom
//	value/<labels>           number   the only number of these labels
//	value/<labels>/<owner>   number   why it is taken: one for each owner
//	unused/<number>          labels   no owner was found at this revision
//
// The first two are written and deleted together. No key has a lease: a silent owner
// still uses its numbers.

// IdentityIDKey holds the labels of an allocated identity, in text.
func IdentityIDKey(n identity.Number) string { return IdentityIDPrefix + decimal(n) }

// ParseIdentityIDKey is the inverse of IdentityIDKey.
func ParseIdentityIDKey(key string) (identity.Number, bool) {
	return parseNumber(key, IdentityIDPrefix)
}

// IdentityTextKey holds the number of labels, which are in text.
func IdentityTextKey(labels string) string { return IdentityTextPrefix + labels }

// IdentityOwnersPrefix covers a key for each owner of the labels' number.
func IdentityOwnersPrefix(labels string) string { return IdentityTextKey(labels) + "/" }

// IdentityOwnerKey says that owner uses the number of these labels. It holds the number.
func IdentityOwnerKey(labels, owner string) string { return IdentityOwnersPrefix(labels) + owner }

// ParseIdentityTextKey is the inverse of IdentityTextKey, where owner is "", and of
// IdentityOwnerKey.
func ParseIdentityTextKey(key string) (labels, owner string, ok bool) {
	text, ok := strings.CutPrefix(key, IdentityTextPrefix)
	if !ok || text == "" {
		return "", "", false
	}
	i := strings.Index(text, ";/")
	if i < 0 {
		return text, "", true
	}
	return text[:i+1], text[i+2:], text[i+2:] != ""
}

// IdentityUnusedKey marks a number for which no owner was found. It holds its labels.
func IdentityUnusedKey(n identity.Number) string { return IdentityUnusedPrefix + decimal(n) }

// ParseIdentityUnusedKey is the inverse of IdentityUnusedKey.
func ParseIdentityUnusedKey(key string) (identity.Number, bool) {
	return parseNumber(key, IdentityUnusedPrefix)
}

// NumberText is an identity's number as a value.
func NumberText(n identity.Number) []byte { return []byte(decimal(n)) }

// ParseNumberText is the inverse of NumberText.
func ParseNumberText(text []byte) (identity.Number, error) {
	n, ok := parseDecimal(string(text))
	if !ok {
		return 0, fmt.Errorf("%q is not an identity's number", text)
	}
	return n, nil
}

func decimal(n identity.Number) string { return strconv.FormatUint(uint64(n), 10) }

// parseNumber reads the number after a prefix.
func parseNumber(key, prefix string) (identity.Number, bool) {
	s, ok := one(key, prefix)
	if !ok {
		return 0, false
	}
	return parseDecimal(s)
}

// parseDecimal accepts a number only as decimal writes it, so that no two keys mean the
// same identity.
func parseDecimal(s string) (identity.Number, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	var written [10]byte
	if err != nil || string(strconv.AppendUint(written[:0], n, 10)) != s {
		return 0, false
	}
	return identity.Number(n), true
}
