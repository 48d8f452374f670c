"""DomainKeys Identified Mail (RFC 6376, 8301, 8463, 8616): did this domain put its name to these very bytes?"""
