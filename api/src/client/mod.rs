//! HTTP client of the native face. (to come)
