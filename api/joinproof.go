package api

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
)

// MinToken is how long a token that two clusters share must be: whoever pretends to be one of
// them gets a proof, and must not be able to guess the token from it.
const MinToken = 32

// joinLabel binds a channel to this use.
const joinLabel = "EXPORTER-weft-join-v1"

// JoinRequest asks POST /v1/join for an Invite, without a certificate: the cluster From proves
// that it has the token which cluster To has for it.
type JoinRequest struct {
	From  string `json:"from"`
	To    string `json:"to"`
	Proof []byte `json:"proof"`
}

// JoinAnswer is the invite, and the proof that To has the token too. Without that, From must
// not believe it.
type JoinAnswer struct {
	Invite Invite `json:"invite"`
	Proof  []byte `json:"proof"`
}

// Channel is what only the two ends of a TLS connection know. A proof that holds for one says
// nothing to anybody in between, who would have two.
func Channel(state *tls.ConnectionState) ([]byte, error) {
	return state.ExportKeyingMaterial(joinLabel, nil, sha256.Size)
}

// AskProof proves, on one channel, that From has the token.
func AskProof(token, channel []byte, from, to string) []byte {
	return joinProof(token, channel, "ask", from, to)
}

// AnswerProof proves that To has it.
func AnswerProof(token, channel []byte, from, to string) []byte {
	return joinProof(token, channel, "answer", from, to)
}

func joinProof(token, channel []byte, words ...string) []byte {
	m := hmac.New(sha256.New, token)
	for _, w := range words {
		m.Write([]byte(w))
		m.Write([]byte{0})
	}
	m.Write(channel)
	return m.Sum(nil)
}
