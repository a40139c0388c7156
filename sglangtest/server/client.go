package server

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-retryablehttp"

	"github.com/sglangtest/harness/sglangtest/internal/wire"
)

const (
	callTimeout = 30 * time.Second // of one call, all its tries together; /server_info waits behind a step, /health 20 s
	slowTimeout = 10 * time.Minute // of a call that loads, writes or drains
	maxAnswer   = 16 << 20
)

// adminRoutes are the routes of the control plane that SGLang guards by the admin key, if it has one (its level
// ADMIN_OPTIONAL, entrypoints/http_server.py of 0.5.15 to 0.5.23). All others take the API key. Those of a
// patched server that change a parameter are taken to be of this kind too.
var adminRoutes = []string{
	"/set_internal_state", "/flush_cache", "/abort_request", "/pause_generation", "/continue_generation", "/slow_down", "/start_profile",
	"/stop_profile", "/configure_logging", "/load_lora_adapter", "/unload_lora_adapter",
}

func isAdminRoute(path string) bool {
	return slices.Contains(adminRoutes, path) || strings.HasPrefix(path, "/update_")
}

// keyOption names the option that sets the key which the server wants for a route.
func keyOption(path string) string {
	if isAdminRoute(path) {
		return "WithAPIKey, or with WithAdminAPIKey if it has an admin key"
	}
	return "WithAPIKey"
}

// A client makes control calls. One that may be made twice without harm is made again if its connection broke before an
// answer, a few times and visibly; an answer, whatever it says, is taken as it is.
type client struct {
	base     string // without user and password
	basic    string // value of the Authorization header that they make
	fault    error  // of the base URL: no call is possible
	apiKey   string
	adminKey string       // for adminRoutes; empty: apiKey there too
	plain    *http.Client // no second tries: for polls and samples
	careful  *retryablehttp.Client
}

func newClient(base, apiKey string, transport http.RoundTripper, onRetry func(message string)) *client {
	if transport == nil {
		transport = &http.Transport{IdleConnTimeout: 4 * time.Second} // SGLang closes after 5
	}
	c := &client{apiKey: apiKey, plain: &http.Client{Transport: transport}}
	if u, basic, err := wire.BaseURL(base); err == nil {
		c.base, c.basic = u.String(), basic
	} else {
		c.fault = err
	}
	c.careful = &retryablehttp.Client{
		HTTPClient: c.plain, RetryMax: 3, RetryWaitMin: 50 * time.Millisecond, RetryWaitMax: 400 * time.Millisecond,
		Backoff: retryablehttp.DefaultBackoff, ErrorHandler: retryablehttp.PassthroughErrorHandler,
		CheckRetry: func(ctx context.Context, _ *http.Response, err error) (bool, error) {
			return err != nil && ctx.Err() == nil, nil
		},
		RequestLogHook: func(_ retryablehttp.Logger, r *http.Request, attempt int) {
			if attempt > 0 {
				onRetry(fmt.Sprintf("%s %s, attempt %d", r.Method, r.URL.Path, attempt+1))
			}
		},
	}
	return c
}

func (c *client) close() { c.plain.CloseIdleConnections() }

// request makes a request with body, which is nil or encoded as JSON.
func (c *client) request(ctx context.Context, method, path string, body any) (*http.Request, error) {
	if c.fault != nil {
		return nil, c.fault
	}
	if c.basic != "" && cmp.Or(c.apiKey, c.adminKey) != "" {
		return nil, errors.New("the base URL has a user and password, and an API key is set: both would be the Authorization header; leave one of them out")
	}
	var r io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		r = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, r)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	key := c.apiKey
	if c.adminKey != "" && isAdminRoute(path) { // the API key would not do there, nor this one elsewhere
		key = c.adminKey
	}
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	} else if c.basic != "" {
		req.Header.Set("Authorization", c.basic)
	}
	return req, nil
}

// call makes a control call and decodes the answer into the value that into points to, unless that is nil; a *[]byte
// gets it as it is.
// A status other than 200 is a *StatusError, no answer a *noAnswerError.
func (c *client) call(ctx context.Context, method, path string, body, into any) error {
	return c.do(ctx, callTimeout, method, path, body, into, func(req *http.Request) (*http.Response, error) {
		again, err := retryablehttp.FromRequest(req)
		if err != nil {
			return nil, err
		}
		return c.careful.Do(again)
	})
}

// once is like call, with a single try.
func (c *client) once(ctx context.Context, method, path string, body, into any) error {
	return c.do(ctx, callTimeout, method, path, body, into, c.plain.Do)
}

// slowly is like once, for a call that takes its time.
func (c *client) slowly(ctx context.Context, method, path string, body, into any) error {
	return c.do(ctx, slowTimeout, method, path, body, into, c.plain.Do)
}

func (c *client) do(ctx context.Context, most time.Duration, method, path string, body, into any, send func(*http.Request) (*http.Response, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, most, fmt.Errorf("not within %v: %w", most, context.DeadlineExceeded))
	defer cancel()
	req, err := c.request(ctx, method, path, body)
	if err != nil {
		return err
	}
	var data []byte
	resp, err := send(req)
	if err == nil {
		defer resp.Body.Close()
		data, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	}
	if err != nil {
		var outer *url.Error // says method and URL again
		if errors.As(err, &outer) {
			err = outer.Err
		}
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		if errors.As(err, new(*tls.CertificateVerificationError)) {
			err = fmt.Errorf("%w (WithTransport takes a transport that knows a private authority)", err)
		}
		return &noAnswerError{method, path, err}
	}
	if resp.StatusCode != http.StatusOK {
		return &StatusError{Method: method, Path: path, Status: resp.StatusCode, Body: wire.Cut(wire.ErrorMessage(data), 500)}
	}
	if len(data) > maxAnswer {
		return fmt.Errorf("%s %s: the answer is longer than %d MiB: no SGLang server sends that", method, path, maxAnswer>>20)
	}
	data = wire.TrimMark(data)
	switch into := into.(type) {
	case nil:
		return nil
	case *[]byte:
		*into = data
		return nil
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("%s %s: the answer is not what SGLang sends: %w", method, path, err)
	}
	return nil
}
