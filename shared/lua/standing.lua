-- standing: how the limits of a tenant, a key and an end user stand. Writes nothing.
-- KEYS  none
-- ARGV  prefix, tenant, key, user (absent: none)
-- Returns JSON, or '' without limits
--@include base
--@include limits
return standing(scopes_of(tenant_policy(a.tenant), a.tenant, a.key, a.user))
