package declared

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/weft-mesh/weft/api"
)

// HTTPS is the Caller of a mesh.
type HTTPS struct{}

const (
	callPatience = 3 * time.Second
	// maxAnswer bounds what somebody who has proven nothing makes us read; an invite is a few
	// kilobytes.
	maxAnswer = 1 << 20
)

// Ask implements Caller.
func (HTTPS) Ask(ctx context.Context, servers []string, make func(channel []byte) api.JoinRequest) (answer *api.JoinAnswer, channel []byte, err error) {
	err = errors.New("no server is named")
	for _, server := range servers {
		answer, channel, err = ask(ctx, address(server), make)
		var refused *api.Error
		if err == nil || errors.As(err, &refused) && refused.Status < http.StatusInternalServerError {
			return answer, channel, err
		}
	}
	return nil, nil, err
}

// address adds the port if there is none.
func address(server string) string {
	if _, _, err := net.SplitHostPort(server); err == nil {
		return server
	}
	return net.JoinHostPort(server, strconv.Itoa(api.ServerPort))
}

func ask(ctx context.Context, server string, make func(channel []byte) api.JoinRequest) (*api.JoinAnswer, []byte, error) {
	dial, cancel := context.WithTimeout(ctx, callPatience)
	defer cancel()
	// Nobody knows its authority yet. Who answers is believed by the proof in its answer,
	// which is bound to this connection; what it is sent helps nobody else.
	conn, err := (&tls.Dialer{Config: &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true}}).DialContext(dial, "tcp", server)
	if err != nil {
		return nil, nil, err
	}
	defer conn.Close()
	state := conn.(*tls.Conn).ConnectionState()
	channel, err := api.Channel(&state)
	if err != nil {
		return nil, nil, err
	}
	body, err := json.Marshal(make(channel))
	if err != nil {
		return nil, nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+server+"/v1/join", bytes.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	transport := &http.Transport{DisableKeepAlives: true, DialTLSContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil }}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, nil, err
	}
	if resp.StatusCode != http.StatusOK {
		refusal := &api.Error{}
		if json.Unmarshal(text, refusal) != nil || refusal.Message == "" {
			return nil, nil, fmt.Errorf("%s answers %s", server, resp.Status)
		}
		refusal.Status = resp.StatusCode
		return nil, nil, refusal
	}
	answer := &api.JoinAnswer{}
	if err := json.Unmarshal(text, answer); err != nil {
		return nil, nil, fmt.Errorf("%s answers nothing that can be read: %w", server, err)
	}
	return answer, channel, nil
}
