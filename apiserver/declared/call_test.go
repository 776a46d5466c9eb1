package declared

import (
	"crypto/hmac"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/api"
)

// Both ends of a connection know the same channel, whoever's certificate the server has, and
// what the server says reaches who asked.
func TestAsk(t *testing.T) {
	var refusal *api.Error
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var request api.JoinRequest
		channel, err := api.Channel(r.TLS)
		if err != nil || r.URL.Path != "/v1/join" || json.NewDecoder(r.Body).Decode(&request) != nil {
			t.Errorf("%s: %v", r.URL, err)
		}
		if refusal != nil {
			w.WriteHeader(refusal.Status)
			_ = json.NewEncoder(w).Encode(refusal)
			return
		}
		if !hmac.Equal(request.Proof, api.AskProof([]byte(token), channel, request.From, request.To)) {
			t.Errorf("the proof is not for the channel: %+v", request)
		}
		_ = json.NewEncoder(w).Encode(api.JoinAnswer{Invite: api.Invite{Cluster: request.To}, Proof: api.AnswerProof([]byte(token), channel, request.From, request.To)})
	}))
	defer server.Close()
	at := strings.TrimPrefix(server.URL, "https://")
	request := func(channel []byte) api.JoinRequest {
		return api.JoinRequest{From: "east", To: "west", Proof: api.AskProof([]byte(token), channel, "east", "west")}
	}
	// The first does not answer.
	answer, channel, err := HTTPS{}.Ask(t.Context(), []string{"127.0.0.1:1", at}, request)
	if err != nil || answer.Invite.Cluster != "west" || !hmac.Equal(answer.Proof, api.AnswerProof([]byte(token), channel, "east", "west")) {
		t.Errorf("answered %+v, %v", answer, err)
	}
	_, again, err := HTTPS{}.Ask(t.Context(), []string{at}, request)
	if err != nil || hmac.Equal(channel, again) {
		t.Errorf("two connections have one channel, %v", err)
	}
	refusal = api.Refuse(http.StatusForbidden, "create a Peer", "joins nobody")
	var refused *api.Error
	if _, _, err := (HTTPS{}).Ask(t.Context(), []string{at, "127.0.0.1:1"}, request); !errors.As(err, &refused) || refused.Status != http.StatusForbidden || refused.Message != "joins nobody" {
		t.Errorf("refused with %v", err)
	}
	if _, _, err := (HTTPS{}).Ask(t.Context(), []string{"127.0.0.1:1"}, request); err == nil || errors.As(err, &refused) {
		t.Errorf("nobody answers: %v", err)
	}
}

func TestAddress(t *testing.T) {
	for in, want := range map[string]string{"192.0.2.1": "192.0.2.1:7443", "west.example:8443": "west.example:8443", "fd00::1": "[fd00::1]:7443", "[fd00::1]:1": "[fd00::1]:1"} {
		if got := address(in); got != want {
			t.Errorf("%s is %s, want %s", in, got, want)
		}
	}
}
