//! The face by its routes.
