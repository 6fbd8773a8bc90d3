//! The CA, hosts' certificates and join secrets. (to come)
