package wire

import (
	"encoding/base64"
	"fmt"
	"net/url"
	"strings"
)

// BaseURL reads the base URL of a server, to which the paths of its routes are appended. The URL that it returns has
// neither a slash at its end nor user and password; those come back as the value of an Authorization header, empty if
// there are none.
func BaseURL(base string) (u *url.URL, authorization string, err error) {
	u, err = url.Parse(base)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, "", fmt.Errorf(`%q: want a base URL such as "http://127.0.0.1:30000"`, WithoutPassword(base))
	}
	refuse := func(format string, args ...any) (*url.URL, string, error) {
		return nil, "", fmt.Errorf("base URL %q: %s", u.Redacted(), fmt.Sprintf(format, args...))
	}
	if u.RawQuery != "" || u.ForceQuery || u.Fragment != "" {
		return refuse("a base URL has neither a query nor a fragment: leave out what follows the path")
	}
	u.Path, u.RawPath = strings.TrimRight(u.Path, "/"), strings.TrimRight(u.RawPath, "/")
	for _, route := range []string{"/v1/chat/completions", "/v1/completions", "/v1", "/generate"} {
		if rest, ok := strings.CutSuffix(u.Path, route); ok {
			want := *u
			want.Path, want.RawPath = rest, ""
			return refuse("%s belongs to the route and is added to the base URL: leave it out and use %q", route, want.Redacted())
		}
	}
	if u.User != nil {
		password, _ := u.User.Password()
		authorization = "Basic " + base64.StdEncoding.EncodeToString([]byte(u.User.Username()+":"+password))
		u.User = nil
	}
	return u, authorization, nil
}

// WithoutPassword returns a URL with its password replaced by "xxxxx".
func WithoutPassword(base string) string {
	if u, err := url.Parse(base); err == nil && u.Host != "" {
		return u.Redacted()
	}
	// It can't be read, so that all before an @ may be a password.
	if i := strings.LastIndexByte(base, '@'); i >= 0 {
		scheme, _, ok := strings.Cut(base[:i], "://")
		if ok {
			scheme += "://"
		} else {
			scheme = ""
		}
		return scheme + "xxxxx" + base[i:]
	}
	return base
}
