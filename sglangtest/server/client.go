package server

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/hashicorp/go-retryablehttp"

	"github.com/sglangtest/harness/sglangtest/internal/wire"
)

const (
	callTimeout = 30 * time.Second // of one control call; /server_info waits behind a step of the scheduler
	maxAnswer   = 16 << 20
)

// A client makes control calls. Every call that this package makes may be made twice without harm, so a call whose
// connection broke is made again, a few times and visibly; an answer, whatever it says, is taken as it is.
type client struct {
	base    string
	apiKey  string
	plain   *http.Client // no second tries: for polls and samples
	careful *retryablehttp.Client
}

func newClient(base, apiKey string, onRetry func(message string)) *client {
	c := &client{base: base, apiKey: apiKey, plain: &http.Client{Transport: &http.Transport{IdleConnTimeout: 4 * time.Second}}}
	c.careful = &retryablehttp.Client{
		HTTPClient: c.plain, RetryMax: 3, RetryWaitMin: 50 * time.Millisecond, RetryWaitMax: 400 * time.Millisecond,
		Backoff: retryablehttp.DefaultBackoff, ErrorHandler: retryablehttp.PassthroughErrorHandler,
		CheckRetry: func(ctx context.Context, _ *http.Response, err error) (bool, error) {
			return err != nil && ctx.Err() == nil, ctx.Err()
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
	if c.apiKey != "" {
		req.Header.Set("Authorization", "Bearer "+c.apiKey)
	}
	return req, nil
}

// call makes a control call and decodes the answer into the value that into points to, unless that is nil.
// A status other than 200 is a *StatusError.
func (c *client) call(ctx context.Context, method, path string, body, into any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	req, err := c.request(ctx, method, path, body)
	if err != nil {
		return err
	}
	again, err := retryablehttp.FromRequest(req)
	if err != nil {
		return err
	}
	resp, err := c.careful.Do(again)
	return answer(req, resp, err, into)
}

// once is like call, with a single try.
func (c *client) once(ctx context.Context, method, path string, into any) error {
	req, err := c.request(ctx, method, path, nil)
	if err != nil {
		return err
	}
	resp, err := c.plain.Do(req)
	return answer(req, resp, err, into)
}

func answer(req *http.Request, resp *http.Response, err error, into any) error {
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("%s %s: %w", req.Method, req.URL.Path, err)
	}
	if resp.StatusCode != http.StatusOK {
		return &StatusError{Method: req.Method, Path: req.URL.Path, Status: resp.StatusCode, Body: wire.ErrorMessage(data[:min(len(data), 500)])}
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("%s %s: the answer is not what SGLang sends: %w", req.Method, req.URL.Path, err)
	}
	return nil
}
