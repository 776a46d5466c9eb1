package api

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// Error is a refusal as the server sends it: what is wrong and what to change. It is the
// body of every answer with a status of 400 or above.
type Error struct {
	// Status is the HTTP status; it is not part of the body.
	Status int `json:"-"`
	// Message says what is wrong, in one sentence.
	Message string `json:"message"`
	// Hint says what to change; empty if the message says it already.
	Hint string `json:"hint,omitempty"`
	// Problems lists mistakes where there can be several: all those of a manifest are
	// reported at once.
	Problems []Problem `json:"problems,omitempty"`
}

// Problem is one mistake in a manifest, or a warning about it.
type Problem struct {
	// File is the file of the document. Only the sender of the manifest knows it; it is
	// empty in answers.
	File string `json:"file,omitempty"`
	// Document counts from 1; 0 means the manifest as a whole.
	Document int `json:"document,omitempty"`
	// Item counts from 1 in a document that is a list; otherwise it is 0.
	Item      int    `json:"item,omitempty"`
	Kind      string `json:"kind,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
	Message   string `json:"message"`
}

// String is the mistake with its place: "web.yaml: document 2, Pod shop/web: …".
func (p Problem) String() string {
	var at []string
	if p.Document > 0 {
		at = append(at, fmt.Sprintf("document %d", p.Document))
	}
	if p.Item > 0 {
		at = append(at, fmt.Sprintf("item %d", p.Item))
	}
	if p.Kind != "" {
		name := p.Name
		if p.Namespace != "" {
			name = p.Namespace + "/" + name
		}
		at = append(at, strings.TrimSpace(p.Kind+" "+name))
	}
	text := p.Message
	if len(at) > 0 {
		text = strings.Join(at, ", ") + ": " + text
	}
	if p.File != "" {
		text = p.File + ": " + text
	}
	return text
}

// Error joins message and problems. Whoever prints it adds the hint.
func (e *Error) Error() string {
	if len(e.Problems) == 0 {
		return e.Message
	}
	lines := make([]string, 0, len(e.Problems)+1)
	if e.Message != "" {
		lines = append(lines, e.Message)
	}
	for _, p := range e.Problems {
		lines = append(lines, "  "+p.String())
	}
	return strings.Join(lines, "\n")
}

// Refuse returns an Error with a status.
func Refuse(status int, hint, format string, args ...any) *Error {
	return &Error{Status: status, Message: fmt.Sprintf(format, args...), Hint: hint}
}

// NotFound says that what was named does not exist.
func NotFound(hint, format string, args ...any) *Error {
	return Refuse(http.StatusNotFound, hint, format, args...)
}

// Invalid says that what was sent cannot be accepted as it is.
func Invalid(hint, format string, args ...any) *Error {
	return Refuse(http.StatusUnprocessableEntity, hint, format, args...)
}

// Conflict says that what was sent contradicts what is there.
func Conflict(hint, format string, args ...any) *Error {
	return Refuse(http.StatusConflict, hint, format, args...)
}

// StoreFull says that the store accepts no writes. The store does not say which of its two
// reasons it has.
func StoreFull() *Error {
	return Refuse(http.StatusInsufficientStorage, "make space on its disk, or raise --etcd-quota-bytes; `weft status` says which of them is full",
		"the store accepts no more writes; nothing was changed")
}

// MaxErrorBytes is how much of a refusal's JSON is read; of a longer one, only the status
// is known.
const MaxErrorBytes = 1 << 20

// readError turns an answer of 400 or above into an *Error, even if it does not come from
// our server.
func readError(resp *http.Response) error {
	body, _ := io.ReadAll(io.LimitReader(resp.Body, MaxErrorBytes))
	e := &Error{}
	if err := json.Unmarshal(body, e); err != nil || (e.Message == "" && len(e.Problems) == 0) {
		e.Message = fmt.Sprintf("%s answered %s", resp.Request.URL.Host, resp.Status)
		if text := strings.TrimSpace(string(body)); text != "" && len(text) < 400 {
			e.Message += ": " + text
		}
	}
	e.Status = resp.StatusCode
	return e
}
